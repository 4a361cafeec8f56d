"""Projects: a user's own script, made ready for its enclave."""
