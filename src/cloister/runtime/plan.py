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
class Plan:
    """What the first process is told once the keys are in place.

    Attributes:
        executable: path of the program inside the tree.
        arguments: its argument vector, element 0 included.
        environment: its whole environment.
        directory: where it starts.
        mounts: what the kernel mounts over the tree, in order.
        host_name: name of the machine that it sees.
        limits: what it may have at most.
        foreseen: what of the tree is fetched ahead.
        processor: where what fetches it works.
    """

    executable: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str
    mounts: list[KernelMount]
    host_name: str
    limits: Limits
    foreseen: Steps
    processor: int | None
