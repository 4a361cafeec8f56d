"""What the runtime and its sandbox tell each other over their socket."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from cloister.runtime.foresight import Steps
from cloister.runtime.limits import Limits
from cloister.runtime.tree import KernelMount

CREDENTIALS = struct.Struct("=iII")  # pid uid gid
STATUS = struct.Struct("=cI")  # kind, value
EXITED, NOT_STARTED, TOLD, MEMORY = b"x", b"e", b"t", b"m"
LENGTH = struct.Struct("=I")
PREPARING = "preparing the sandbox"
READY = b"r"
"""The tree is mounted: the program's process waits for the plan."""
STARTING = b"!"
"""The program's process has the plan; its credentials tell its number."""


class MemoryUse(NamedTuple):
    """What a tmpfs mount holds.

    Attributes:
        path: where the program sees it.
        files: files and directories in it.
        size: bytes.
    """

    path: str
    files: int
    size: int


@dataclass(frozen=True)
class Stage:
    """What the first process is told as soon as the tree is there.

    Attributes:
        mounts: what the kernel mounts over the tree, in order.
        host_name: name of the machine that the program sees.
        foreseen: what of the tree is fetched ahead, at once.
        foreseen_later: what is fetched when the keys are in place.
        limits: what the program may have at most.
        processor: where what fetches it works; None leaves that to the kernel.
    """

    mounts: list[KernelMount]
    host_name: str
    foreseen: Steps
    foreseen_later: Steps
    limits: Limits
    processor: int | None


@dataclass(frozen=True)
class Plan:
    """What the program's process is told once the keys are in place.

    Attributes:
        executable: path of the program inside the tree.
        arguments: its argument vector, element 0 included.
        environment: its whole environment.
        directory: where it starts.
        heeded: signals for it that its caller does not ignore, and so it does not either.
    """

    executable: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str
    heeded: list[int]
