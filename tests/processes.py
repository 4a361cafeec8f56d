"""What the kernel tells of processes."""

from __future__ import annotations

from pathlib import Path


def children(process: int) -> list[int]:
    """The processes that a process has forked."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_gone(process: int) -> bool:
    """Tell whether a process has ended, though its parent may not know yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"
