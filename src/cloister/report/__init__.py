"""A run for people who would rather look than read: its record, and the page made of it."""
