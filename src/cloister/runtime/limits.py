"""Limits that an enclave imposes, so that one meets them here and not first on hardware.

Each process of the program is an enclave of its own, as in Graphene and Gramine: its address space
is at most ``sgx.enclave_size`` and it has at most ``sgx.max_threads`` threads (with EDMM an enclave
grows threads as it needs them). The library OS needs up to three of those threads for itself, which
this platform does not. ``sys.stack.size`` is the soft limit of the main stack and the C library's
default for the others. ``sys.brk.max_size`` is not imposed: the kernel could only do so by limiting
all private memory, and programs do not notice which of the two an allocation comes from.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest

_PAGE = 4096
_MOST_DESCRIPTORS = 65536
"""Hard limit of descriptors, as in Graphene and Gramine."""


@dataclass(frozen=True)
class Limits:
    """What a program may have at most; sizes in bytes.

    Attributes:
        stack: soft limit of the stack.
        descriptors: soft limit of open files of a process.
        address_space: of each process; None is unlimited.
        threads: of each process, the first one included; None is unlimited.
        subprocesses: whether the program may start any.
        terminals: whether the program may have others than its standard streams.
    """

    stack: int
    descriptors: int
    address_space: int | None = None
    threads: int | None = None
    subprocesses: bool = True
    terminals: bool = True

    @property
    def is_watched(self) -> bool:
        """Tell whether somebody has to answer for a limit that the kernel alone does not keep."""
        return not (self.address_space is None and self.threads is None and self.subprocesses)


def limits_of(manifest: Manifest, *, enclave: bool) -> Limits:
    """Return the limits of a manifest; those of the enclave only where there is one."""
    system, sgx = manifest.sys, manifest.sgx
    return Limits(
        stack=-(-system.stack.size // _PAGE) * _PAGE,
        descriptors=system.fds.limit,
        address_space=sgx.enclave_size if enclave else None,
        threads=sgx.max_threads if enclave and not sgx.edmm_enable else None,
        subprocesses=not system.disallow_subprocesses,
        terminals=manifest.cloister.terminals,
    )


def impose(limits: Limits) -> None:
    """Set the kernel's limits of the calling process, whose next step is to execute the program.

    A core limit of 1 byte also stops the kernel from piping a core to a program, which 0 does not.

    Raises:
        ValueError: this machine permits less; says which key asks for more.
    """
    _lower(resource.RLIMIT_CORE, 1, 1)
    _soften(resource.RLIMIT_STACK, limits.stack, "sys.stack.size")
    _soften(resource.RLIMIT_NOFILE, limits.descriptors, "sys.fds.limit")
    _lower(resource.RLIMIT_NOFILE, limits.descriptors, max(limits.descriptors, _MOST_DESCRIPTORS))
    if limits.address_space is not None:
        _lower(resource.RLIMIT_AS, limits.address_space, limits.address_space)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set both limits, except where the machine permits less."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def _soften(kind: int, soft: int, key: str) -> None:
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY and soft > most:
        raise ValueError(f"{key} = {soft}: this machine permits {most} (ulimit -H)")
    resource.setrlimit(kind, (soft, most))
