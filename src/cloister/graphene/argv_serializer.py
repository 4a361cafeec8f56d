"""``graphene-argv-serializer``: arguments for ``loader.argv_src_file``, each ended by NUL."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Write the arguments to standard output; return 1 if that fails."""
    try:
        for argument in arguments:
            sys.stdout.buffer.write(os.fsencode(argument) + b"\0")
        sys.stdout.buffer.flush()
    except OSError as error:
        print(f"graphene-argv-serializer: error: {error.strerror}", file=sys.stderr)
        # Python would try to flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
