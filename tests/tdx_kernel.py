"""What the kernel of a TDX virtual machine offers, imitated by a file system of its own.

``report/`` behaves as configfs-tsm: a directory made there has ``provider``, ``generation``,
``inblob`` and ``outblob``. ``rtmr3:sha384`` behaves as the measurement register of sysfs. Errors,
modes and sizes are those that Linux 6.12 and 7.3 gave when asked the same. Quotes are signed by a
simulated device. Faults are what a broken or hostile kernel, or host, could do.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import os
import stat
import threading
import time
from pathlib import Path

from cloister.fuse.filesystem import (
    Attributes,
    Caller,
    Change,
    Entry,
    Filesystem,
    Listed,
    Opened,
)
from cloister.fuse.protocol import OpenFlag
from cloister.fuse.server import Server
from cloister.runtime import linux
from worlds import TD_REPORT, World, new_quote

FAULTS = (
    *("generation", "short", "nonce", "register", "provider", "sgx", "stuck", "refuses"),
    *("silent", "empty", "long", "padded"),
)
ROOT, REPORTS, REGISTER, FIRST_REQUEST = 1, 2, 3, 16
FILES = {
    b"provider": Attributes(mode=stat.S_IFREG | 0o444, size=4096),
    b"generation": Attributes(mode=stat.S_IFREG | 0o444, size=4096),
    b"inblob": Attributes(mode=stat.S_IFREG | 0o200),
    b"outblob": Attributes(mode=stat.S_IFREG | 0o444),
}
NAMES = tuple(FILES)
DIRECTORY = Attributes(mode=stat.S_IFDIR | 0o755)
RTMR = Attributes(mode=stat.S_IFREG | 0o644, size=48)
LONGEST_INBLOB = 64


@dataclasses.dataclass
class Request:
    """One directory below ``report/``."""

    made: float
    inblob: bytes = b""
    generation: int = 0


class TdxKernel(Filesystem):
    """The two interfaces; ``fault`` is one of :data:`FAULTS`, or empty.

    ``busy`` times the driver says that it is, whatever the fault.
    """

    def __init__(self, world: World, fault: str = "", busy: int = 0) -> None:
        self.world = world
        self.fault = fault
        self.busy = busy
        self.register = bytes(48)
        self.requests: dict[int, Request] = {}
        self.names: dict[bytes, int] = {}
        self.writing: dict[int, bytearray] = {}
        self.answers: dict[int, bytes] = {}
        self.handles = itertools.count(1)

    # Nodes of a request are its number times 16, and its files the numbers behind that.

    def lookup(self, parent: int, name: bytes) -> Entry:
        node = {ROOT: {b"report": REPORTS, b"rtmr3:sha384": REGISTER}, REPORTS: self.names}.get(
            parent, {each: parent + 1 + number for number, each in enumerate(NAMES)}
        ).get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return Entry(node, self._attributes(node), 0, 0)

    def getattr(self, node: int, handle: int | None) -> tuple[Attributes, float]:
        return self._attributes(node), 0

    def _attributes(self, node: int) -> Attributes:
        if node == REGISTER:
            return RTMR
        if node in (ROOT, REPORTS):
            return DIRECTORY
        if node % 16:
            return FILES[_name(node)]
        made = int(self.requests[node].made * 1e9)
        return DIRECTORY._replace(mtime_ns=made)

    def setattr(self, node: int, change: Change) -> tuple[Attributes, float]:
        return self.getattr(node, None)  # what is opened for writing is truncated first

    def opendir(self, node: int, caller: Caller) -> Opened:
        return Opened(next(self.handles))

    def readdir(self, node: int, handle: int, offset: int) -> list[Listed]:
        found = [Listed(name, number, stat.S_IFDIR) for name, number in self.names.items()]
        return found[offset:] if node == REPORTS else []

    def releasedir(self, node: int, handle: int) -> None:
        pass

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        if parent != REPORTS:
            raise PermissionError(errno.EPERM, name)
        if name in self.names:
            raise FileExistsError(errno.EEXIST, name)
        return Entry(self.add(name, time.time()), DIRECTORY, 0, 0)

    def add(self, name: bytes, made: float) -> int:
        """Make a request, at a time of the epoch."""
        node = max(self.requests, default=FIRST_REQUEST) + 16
        self.names[name] = node
        self.requests[node] = Request(made)
        return node

    def rmdir(self, parent: int, name: bytes) -> None:
        del self.requests[self.names.pop(name)]

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if node != REGISTER and (flags & os.O_ACCMODE == os.O_RDWR or writes != _is_inblob(node)):
            raise PermissionError(errno.EACCES, "one may be read, another written")
        handle = next(self.handles)
        if node != REGISTER and writes:
            self.writing[handle] = bytearray()
        return Opened(handle, OpenFlag.DIRECT_IO)

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        if node == REGISTER:
            return self.register[offset : offset + size]
        if handle not in self.answers:  # made once for an open file
            self.answers[handle] = self._content(node)
        return self.answers[handle][offset : offset + size]

    def write(self, node: int, handle: int, offset: int, data: memoryview, *, append: bool) -> int:
        if node == REGISTER:
            return self._extend(offset, bytes(data))
        if offset + len(data) > LONGEST_INBLOB:
            raise OSError(errno.EFBIG, "64 bytes at most")
        inblob = self.writing[handle]
        inblob.extend(bytes(max(0, offset + len(data) - len(inblob))))
        inblob[offset : offset + len(data)] = data
        return len(data)

    def flush(self, node: int, handle: int) -> None:
        """A written blob counts when it is closed."""
        if handle in self.writing:
            request = self.requests[node - node % 16]
            request.inblob = bytes(self.writing.pop(handle))
            request.generation += 2 if self.fault == "generation" else 1

    def release(self, node: int, handle: int) -> None:
        self.answers.pop(handle, None)

    def _extend(self, offset: int, data: bytes) -> int:
        if self.fault == "refuses":
            raise OSError(errno.EIO, "the module refuses")
        if offset >= 48:
            raise OSError(errno.EFBIG, "a register has 48 bytes")
        if offset or len(data) < 48:
            raise OSError(errno.EINVAL, "a digest of SHA-384 has 48 bytes")
        if self.fault != "stuck":
            self.register = hashlib.sha384(self.register + data[:48]).digest()
        return 48

    def _content(self, node: int) -> bytes:
        request = self.requests[node - node % 16]
        name = _name(node)
        if name == b"provider":
            return b"sev_guest\n" if self.fault == "provider" else b"tdx_guest\n"
        if name == b"generation":
            return b"%d\n" % request.generation
        if len(request.inblob) != LONGEST_INBLOB:
            raise OSError(errno.EINVAL, "no report data")
        return self._outblob(request.inblob)

    def _outblob(self, report_data: bytes) -> bytes:
        if self.busy:
            self.busy -= 1
            raise OSError(errno.EBUSY, "the host owes an answer to somebody else")
        if self.fault == "silent":
            raise OSError(errno.EIO, "the host does not answer")
        answers = {"empty": b"", "long": b"x" * 200_000}
        return answers[self.fault] if self.fault in answers else self._quote(report_data)

    def _quote(self, report_data: bytes) -> bytes:
        if self.fault == "sgx":
            return self.world.quote()
        report = TD_REPORT._replace(
            rtmr3=bytes(48) if self.fault == "register" else self.register,
            report_data=bytes(64) if self.fault == "nonce" else report_data,
        )
        quote = new_quote(self.world, report.pack())
        return quote[:700] if self.fault == "short" else quote.ljust(self._padded_size(), b"\0")

    def _padded_size(self) -> int:
        return 100_000 if self.fault == "padded" else 0


def _name(node: int) -> bytes:
    return NAMES[node % 16 - 1]


def _is_inblob(node: int) -> bool:
    return _name(node) == b"inblob"


def mount(kernel: TdxKernel, place: Path) -> None:
    """Mount the imitation, in namespaces of this process's own; it is served by a thread."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0"
    linux.mount("tdx", str(place), "fuse.tdx", linux.MS_NOSUID | linux.MS_NODEV, options)

    def crashed(request: str, error: Exception) -> None:
        raise error

    threading.Thread(target=Server(device, kernel, crashed).serve, daemon=True).start()
