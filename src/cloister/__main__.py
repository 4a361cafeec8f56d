"""The command ``cloister``, and ``python -m cloister``, which is the same."""

from __future__ import annotations

import gc
import signal

_GARBAGE = 50_000
"""New objects between two collections: what modules make while they load is no garbage."""


def main() -> None:
    """Load the command line, which takes a tenth of a second, and run it.

    Ctrl-C meanwhile ends the process and nothing else: nobody is there yet who would tell of it.
    """
    gc.set_threshold(_GARBAGE)
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cloister.cli.main import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
