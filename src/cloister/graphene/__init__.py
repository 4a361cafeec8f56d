"""The old command names, as thin fronts of the same code."""
