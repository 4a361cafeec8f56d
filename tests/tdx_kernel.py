"""What the kernel of a TDX virtual machine offers, imitated by a file system of its own.

``report/`` behaves as configfs-tsm: a directory made there has ``provider``, ``generation``,
``inblob`` and ``outblob``. ``rtmr3:sha384`` behaves as the measurement register of sysfs. Quotes
are signed by a simulated device. Faults are what a broken or hostile kernel could do.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

from cloister.fuse.filesystem import (
    Attributes,
    Caller,
    Change,
    Entry,
    Filesystem,
    Opened,
)
from cloister.fuse.protocol import OpenFlag
from cloister.fuse.server import Server
from cloister.runtime import linux
from worlds import TD_REPORT, World, new_quote

FAULTS = ("generation", "short", "nonce", "register", "provider", "sgx", "stuck")
ROOT, REPORTS, REGISTER, FIRST_REQUEST = 1, 2, 3, 16
NAMES = (b"provider", b"generation", b"inblob", b"outblob")
DIRECTORY = Attributes(mode=stat.S_IFDIR | 0o755)
FILE = Attributes(mode=stat.S_IFREG | 0o644)


@dataclasses.dataclass
class Request:
    """One directory below ``report/``."""

    inblob: bytes = b""
    generation: int = 0


class TdxKernel(Filesystem):
    """The two interfaces; ``fault`` is one of :data:`FAULTS`, or empty."""

    def __init__(self, world: World, fault: str = "") -> None:
        self.world = world
        self.fault = fault
        self.register = bytes(48)
        self.requests: dict[int, Request] = {}
        self.names: dict[bytes, int] = {}

    # Nodes of a request are its number times 16, and its files the numbers behind that.

    def lookup(self, parent: int, name: bytes) -> Entry:
        if parent == ROOT:
            found = {b"report": (REPORTS, DIRECTORY), b"rtmr3:sha384": (REGISTER, FILE)}.get(name)
        elif parent == REPORTS:
            found = (self.names[name], DIRECTORY) if name in self.names else None
        else:
            found = (parent + 1 + NAMES.index(name), FILE) if name in NAMES else None
        if found is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return Entry(*found, 0, 0)

    def getattr(self, node: int, handle: int | None) -> tuple[Attributes, float]:
        directory = node in (ROOT, REPORTS) or node % 16 == 0
        return DIRECTORY if directory else FILE, 0

    def setattr(self, node: int, change: Change) -> tuple[Attributes, float]:
        return self.getattr(node, None)  # what is opened for writing is truncated first

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        if parent != REPORTS or name in self.names:
            raise PermissionError(errno.EPERM, name)
        node = FIRST_REQUEST * (len(self.requests) + 1)
        self.names[name] = node
        self.requests[node] = Request()
        return Entry(node, DIRECTORY, 0, 0)

    def rmdir(self, parent: int, name: bytes) -> None:
        del self.requests[self.names.pop(name)]

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        return Opened(node, OpenFlag.DIRECT_IO)

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        return self._content(node)[offset : offset + size]

    def write(self, node: int, handle: int, offset: int, data: memoryview, *, append: bool) -> int:
        if node == REGISTER:
            self._extend(bytes(data))
        elif NAMES[node % 16 - 1] == b"inblob":
            request = self.requests[node - node % 16]
            request.inblob = bytes(data)
            request.generation += 2 if self.fault == "generation" else 1
        else:
            raise PermissionError(errno.EPERM, "read-only")
        return len(data)

    def flush(self, node: int, handle: int) -> None:
        pass

    def release(self, node: int, handle: int) -> None:
        pass

    def _extend(self, digest: bytes) -> None:
        if len(digest) != 48:
            raise OSError(errno.EINVAL, "a digest of SHA-384 has 48 bytes")
        if self.fault != "stuck":
            self.register = hashlib.sha384(self.register + digest).digest()

    def _content(self, node: int) -> bytes:
        if node == REGISTER:
            return self.register
        request = self.requests[node - node % 16]
        name = NAMES[node % 16 - 1]
        if name == b"provider":
            return b"sev_guest\n" if self.fault == "provider" else b"tdx_guest\n"
        if name == b"generation":
            return b"%d\n" % request.generation
        if name == b"outblob":
            return self._quote(request.inblob)
        raise PermissionError(errno.EPERM, "write-only")

    def _quote(self, report_data: bytes) -> bytes:
        if self.fault == "sgx":
            return self.world.quote()
        report = dataclasses.replace(
            TD_REPORT,
            rtmr3=bytes(48) if self.fault == "register" else self.register,
            report_data=bytes(64) if self.fault == "nonce" else report_data,
        )
        quote = new_quote(self.world, report.pack())
        return quote[:700] if self.fault == "short" else quote


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
