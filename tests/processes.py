"""What the kernel tells of processes."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def children(process: int) -> list[int]:
    """The processes that a process has forked."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_gone(process: int) -> bool:
    """Tell whether a process has ended, though its parent may not know yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while still := [one for one in processes if not is_gone(one)]:
        assert time.monotonic() < deadline, still
        time.sleep(0.02)


def descendants(process: int) -> list[int]:
    """Children, their children, and so on; who ends meanwhile may be left out."""
    found = []
    with contextlib.suppress(OSError):
        for child in children(process):
            found += [child, *descendants(child)]
    return found


def sockets(process: int) -> set[Path]:
    """The sockets that a process has open; one that two share has the same name in both."""
    found = (path.readlink() for path in Path(f"/proc/{process}/fd").iterdir())
    return {target for target in found if str(target).startswith("socket:")}
