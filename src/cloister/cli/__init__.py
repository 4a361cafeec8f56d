"""The ``cloister`` command: one module a command; arguments, progress and printing only."""
