"""``python -m cloister`` is the same as ``cloister``."""

from cloister.cli.main import main

main()
