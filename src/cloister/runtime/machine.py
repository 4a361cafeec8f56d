"""What a program sees of the machine: ``/proc/sys``, ``/sys``, and what ``/proc`` does not show.

``/proc`` itself is the kernel's, of the program's own PID namespace: only process directories that
the program could inspect anyway are visible in it. Of the machine-wide files at its top there are
``cpuinfo``, ``meminfo`` and ``stat``, with the kernel's live values; the others cannot be opened
(``ENOENT``), directories are empty. That is Gramine's list. Beyond it a program sees all files of
its own process directories, and so, through ``/proc/PID/net``, the network that it shares with the
host; and a few values of ``/proc/sys`` that C libraries and language runtimes ask for.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from cloister.runtime.directory import HostDirectory
from cloister.runtime.nodes import Directory, Node, SyntheticDirectory, refuse
from cloister.runtime.pseudo import PseudoFile
from cloister.runtime.scene import Scene

SHOWN_OF_PROC = ("cpuinfo", "meminfo", "stat", "sys")
"""Top-level names of ``/proc`` besides processes and links to the caller's own directory."""

_SYSCTLS = (
    "fs/lease-break-time",  # Gramine's list
    "fs/pipe-max-size",  # fcntl(F_SETPIPE_SZ)
    "kernel/ngroups_max",  # sysconf(_SC_NGROUPS_MAX)
    "kernel/pid_max",  # Gramine's list
    "kernel/random/uuid",  # Java, and scripts
    "net/core/somaxconn",  # listen() of Go, Node and others
    "vm/overcommit_memory",  # malloc of the C library, when a thread's heap shrinks
)

_Shown = Mapping[str, "_Shown | None"]
"""Patterns of names: of files (None) and of directories with what they show."""

_SHOWN_OF_CPU: _Shown = {
    "online|offline|possible|present|kernel_max": None,
    "cpu[0-9]+": {
        "online": None,
        "topology": {
            "core_id|physical_package_id|die_id|cluster_id": None,
            "(core|thread|package|die|cluster)_(siblings|cpus)(_list)?": None,
        },
        "cache": {
            "index[0-9]+": {
                "shared_cpu_(map|list)|level|type|size|number_of_sets": None,
                "coherency_line_size|physical_line_partition|ways_of_associativity": None,
            }
        },
        "cpufreq": {"cpuinfo_(min|max)_freq": None},
    },
}
_SHOWN_OF_NODE: _Shown = {
    "online|possible|has_cpu|has_memory|has_normal_memory": None,
    "node[0-9]+": {
        "cpumap|cpulist|distance|meminfo": None,
        "hugepages": {"hugepages-[0-9]+kB": {"nr_hugepages|free_hugepages": None}},
    },
}
SHOWN_OF_SYSFS: Mapping[str, _Shown] = {
    "/sys/devices/system/cpu": _SHOWN_OF_CPU,
    "/sys/devices/system/node": _SHOWN_OF_NODE,
}


class ListedDirectory(HostDirectory):
    """A directory of the host of which only listed names exist.

    Args:
        shown: those names.
    """

    def __init__(self, scene: Scene, path: str, shown: _Shown) -> None:
        super().__init__(scene, path, path)
        self._shown_names = shown

    def child(self, name: bytes) -> Node:
        """Return the node of a listed name."""
        text = os.fsdecode(name)
        for pattern, below in self._shown_names.items():
            if re.fullmatch(pattern, text):
                host, path = self.places(name)
                is_directory = stat.S_ISDIR(os.stat(host).st_mode)
                if is_directory != (below is not None):
                    break
                return super().child(name) if below is None else self._below(path, below)
        refuse(errno.ENOENT)

    def _below(self, path: str, shown: _Shown) -> ListedDirectory:
        return ListedDirectory(self.scene, path, shown)

    def entries(self) -> list[tuple[bytes, int]]:
        """Return the listed names."""
        return [
            (name, mode)
            for name, mode in super().entries()
            if any(re.fullmatch(pattern, os.fsdecode(name)) for pattern in self._shown_names)
        ]


def sysctl_directory() -> SyntheticDirectory:
    """Return ``/proc/sys``: a few values, read when they are opened, which nobody can set."""
    root = SyntheticDirectory()
    for name in _SYSCTLS:
        path = Path("/proc/sys") / name
        if path.exists():
            directory: Directory = root
            *way, last = name.encode().split(b"/")
            for part in way:
                directory = _subdirectory(directory, part)
            directory.mounted[last] = _host_value(path)
    return root


def _host_value(path: Path) -> PseudoFile:
    return PseudoFile(lambda caller: path.read_bytes())


def _subdirectory(directory: Directory, name: bytes) -> Directory:
    found = directory.mounted.setdefault(name, SyntheticDirectory())
    if not isinstance(found, Directory):
        refuse(errno.ENOTDIR)
    return found
