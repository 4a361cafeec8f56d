"""Answers for limits that the kernel does not keep, and learns which limits were reached.

Part of process 1. A few system calls of the program wait for its word (``SECCOMP_RET_USER_NOTIF``,
seccomp_unotify(2)). :mod:`cloister.runtime.seccomp` chooses them so that they are rare: new
threads, new processes where there may be none, mappings of a notable part of the enclave, and ends
in failure. It judges numbers only, never the program's memory, and nothing that protects anybody
depends on it: limits are there to be met early.
"""

from __future__ import annotations

import errno
import fcntl
import re
import signal
from pathlib import Path
from struct import Struct

from cloister.runtime.limits import Limits
from cloister.runtime.seccomp import LARGE_SHARE, Call

_NOTIFICATION = Struct("=QIIiIQ6Q")  # struct seccomp_notif: id pid flags; nr arch ip arguments
_RESPONSE = Struct("=QqiI")  # struct seccomp_notif_resp: id value error flags
_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_MAP_FIXED = 0x10
_CLONE_THREAD = 0x10000
_GONE = (errno.ENOENT, errno.EINTR)  # whoever waited was killed, or had a signal to handle first
_MIB = 1 << 20


class Supervisor:
    """Judges the calls that come through ``listener``.

    Args:
        listener: descriptor of the filter's notifications; None if it never asks.
        limits: what is to be kept.

    Attributes:
        reached: what to tell of each limit that was reached, by its manifest key.
    """

    def __init__(self, listener: int | None, limits: Limits) -> None:
        self.listener = listener
        self.reached: dict[str, str] = {}
        self._limits = limits

    def answer(self) -> None:
        """Receive one call and let it go on or fail; the caller found that one waits."""
        if self.listener is None:
            return
        request = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, request)
            identity, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(request)
            error = self._judge(pid, number, arguments)
            response = _RESPONSE.pack(identity, 0, -error, 0 if error else _CONTINUE)
            fcntl.ioctl(self.listener, _SEND, response)
        except OSError as problem:
            if problem.errno not in _GONE:
                raise

    def _judge(self, pid: int, number: int, arguments: list[int]) -> int:
        """Return the error that the call shall have, 0 to let it go on."""
        if number in (Call.FORK, Call.VFORK):
            return self._judge_process()
        if number == Call.CLONE:
            is_thread = bool(arguments[0] & _CLONE_THREAD)
            return self._judge_thread(pid) if is_thread else self._judge_process()
        if number == Call.MMAP and not arguments[3] & _MAP_FIXED:
            self._look_ahead(pid, arguments[1])
        elif number == Call.MREMAP:
            self._look_ahead(pid, arguments[2] - arguments[1])
        elif number == Call.EXIT_GROUP or (
            number == Call.TGKILL and arguments[2] == signal.SIGABRT
        ):
            self._look_back(pid)
        return 0

    def _judge_process(self) -> int:
        if self._limits.subprocesses:
            return 0
        self.reached.setdefault(
            "sys.disallow_subprocesses",
            "the program tried to start a process and got EAGAIN; "
            "sys.disallow_subprocesses = true forbids it",
        )
        return errno.EAGAIN

    def _judge_thread(self, pid: int) -> int:
        most = self._limits.threads
        if most is None or _status(pid, "Threads") < most:
            return 0
        self.reached.setdefault(
            "sgx.max_threads",
            f"a process with {most} threads wanted one more and got EAGAIN; "
            f"sgx.max_threads = {most} is the limit",
        )
        return errno.EAGAIN

    def _look_ahead(self, pid: int, more: int) -> None:
        """Note a mapping that will fail: the kernel counts exactly as this does."""
        limit = self._limits.address_space
        if limit is None:
            return
        has = _status(pid, "VmSize") << 10
        if has + more > limit:
            self._tell_of_memory(
                f"an allocation of {_mib(more)} failed in a process with {_mib(has)}", limit
            )

    def _look_back(self, pid: int) -> None:
        """Note a process that fails after it filled its address space with small allocations."""
        limit = self._limits.address_space
        if limit is None:
            return
        peak = _status(pid, "VmPeak") << 10
        if peak >= limit - limit // LARGE_SHARE:
            self._tell_of_memory(f"a process failed after it had grown to {_mib(peak)}", limit)

    def _tell_of_memory(self, what: str, limit: int) -> None:
        self.reached.setdefault(
            "sgx.enclave_size",
            f"{what}; sgx.enclave_size = {_mib(limit)} is all that a process can have",
        )


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"


def _status(pid: int, field: str) -> int:
    """Return a number of ``/proc/PID/status``, 0 if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s*([0-9]+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
