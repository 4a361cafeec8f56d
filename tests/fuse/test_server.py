"""The serving loop, with the test in the kernel's place: messages in, messages out.

The tables themselves are checked by the real kernel in tests/runtime; here is what a well-behaved
kernel never sends, or sends only when something is wrong.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator

import pytest

from cloister.errors import CloisterError
from cloister.fuse import protocol as p
from cloister.fuse.filesystem import Attributes, Caller, Entry, Filesystem, Listed, Opened
from cloister.fuse.server import Server

FILE = Attributes(mode=stat.S_IFREG | 0o644, size=5, mtime_ns=1_500_000_000_000_000_001)


class Small(Filesystem):
    """Ten thousand names, one readable file, one method with a defect."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, int]] = []
        self.destroyed = False

    def lookup(self, parent: int, name: bytes) -> Entry:
        if name == b"defect":
            raise KeyError(name)
        if name != b"there":
            raise FileNotFoundError(errno.ENOENT, "no")
        return Entry(7, FILE, 1.5, 2.25)

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        return Opened(3)

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        return b"hello"[offset : offset + size]

    def readdir(self, node: int, handle: int, offset: int) -> Iterator[Listed]:
        return (Listed(b"%05d" % n, n + 1, stat.S_IFREG) for n in range(offset, 10_000))

    def forget(self, node: int, count: int) -> None:
        self.forgotten.append((node, count))

    def destroy(self) -> None:
        self.destroyed = True


class Kernel:
    """Plays the kernel over a socket that keeps message boundaries, as /dev/fuse does."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.filesystem = Small()
        self.crashes: list[str] = []
        self.failure: list[BaseException] = []
        server = Server(
            self.theirs.fileno(), self.filesystem, lambda name, error: self.crashes.append(name)
        )

        def serve() -> None:
            try:
                server.serve()
            except (CloisterError, OSError) as error:
                self.failure.append(error)

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        self.unique = 0

    def send(
        self, opcode: int, body: bytes = b"", node: int = 1, length: int | None = None
    ) -> None:
        self.unique += 2
        size = p.IN_HEADER.size + len(body) if length is None else length
        self.ours.send(p.IN_HEADER.pack(size, opcode, self.unique, node, 0, 0, 1, 0, 0) + body)

    def ask(self, opcode: int, body: bytes = b"", node: int = 1) -> tuple[int, bytes]:
        self.send(opcode, body, node)
        answer = self.ours.recv(1 << 21)
        length, error, unique = p.OUT_HEADER.unpack_from(answer)
        assert (length, unique) == (len(answer), self.unique)
        return -error, answer[p.OUT_HEADER.size :]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    played = Kernel()
    yield played
    played.ours.close()
    # Not before the loop has ended: it would go on with whatever gets the descriptor's number next.
    played.thread.join(10)
    played.theirs.close()


def test_init_answers_what_both_sides_have(kernel: Kernel) -> None:
    offered = p.InitFlag.ASYNC_READ | p.InitFlag.MAX_PAGES
    error, body = kernel.ask(p.Opcode.INIT, struct.pack("=IIII", 7, 45, 131072, offered))
    major, minor, readahead, flags = struct.unpack_from("=IIII", body)
    assert (error, major, readahead, flags, len(body)) == (0, 7, 131072, offered, 64)
    assert minor <= 45


@pytest.mark.parametrize("version", [(7, 30), (8, 0), (6, 31)])
def test_init_refuses_other_protocols(kernel: Kernel, version: tuple[int, int]) -> None:
    kernel.send(p.Opcode.INIT, struct.pack("=IIII", *version, 131072, 0))
    kernel.thread.join(5)
    (failure,) = kernel.failure
    assert isinstance(failure, CloisterError)
    assert f"FUSE {version[0]}.{version[1]}" in failure.message


def test_an_unknown_request_is_not_implemented(kernel: Kernel) -> None:
    assert kernel.ask(4000) == (errno.ENOSYS, b"")


def test_an_error_number_reaches_the_program(kernel: Kernel) -> None:
    assert kernel.ask(p.Opcode.LOOKUP, b"not\0") == (errno.ENOENT, b"")
    assert kernel.ask(p.Opcode.READLINK)[0] == errno.ENOSYS


def test_a_defect_is_told_and_serving_goes_on(kernel: Kernel) -> None:
    assert kernel.ask(p.Opcode.LOOKUP, b"defect\0") == (errno.EIO, b"")
    assert kernel.crashes == ["LOOKUP"]
    assert kernel.ask(p.Opcode.LOOKUP, b"there\0")[0] == 0


def test_entry_carries_times_and_lifetimes(kernel: Kernel) -> None:
    error, body = kernel.ask(p.Opcode.LOOKUP, b"there\0")
    node, generation, name_s, attr_s, name_ns, attr_ns = p.ENTRY_OUT.unpack_from(body)
    fields = p.ATTR.unpack_from(body, p.ENTRY_OUT.size)
    assert (error, node, generation, len(body)) == (0, 7, 0, 128)
    assert (name_s, name_ns, attr_s, attr_ns) == (1, 500_000_000, 2, 250_000_000)
    assert (fields[1], fields[4], fields[7]) == (5, 1_500_000_000, 1)


def test_forget_has_no_answer(kernel: Kernel) -> None:
    kernel.send(p.Opcode.FORGET, struct.pack("=Q", 3), node=9)
    kernel.send(p.Opcode.BATCH_FORGET, struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 4, 1, 5, 2))
    kernel.send(p.Opcode.INTERRUPT, struct.pack("=Q", 2))
    assert kernel.ask(p.Opcode.LOOKUP, b"there\0")[0] == 0
    assert kernel.filesystem.forgotten == [(9, 3), (4, 1), (5, 2)]


def test_a_listing_never_outgrows_the_kernels_buffer(kernel: Kernel) -> None:
    seen: list[bytes] = []
    offset = 0
    while True:
        error, body = kernel.ask(
            p.Opcode.READDIR, struct.pack("=QQIIQII", 1, offset, 4096, 0, 0, 0, 0)
        )
        assert error == 0
        assert len(body) <= 4096
        if not body:
            break
        at = 0
        while at < len(body):
            _, offset, length, _ = p.DIRENT.unpack_from(body, at)
            seen.append(body[at + p.DIRENT.size : at + p.DIRENT.size + length])
            at += p.padded(p.DIRENT.size + length)
    assert seen == [b"%05d" % n for n in range(10_000)]


def test_a_request_that_lies_about_its_length_ends_serving(kernel: Kernel) -> None:
    kernel.send(p.Opcode.LOOKUP, b"there\0", length=4000)
    kernel.thread.join(5)
    (failure,) = kernel.failure
    assert isinstance(failure, OSError)
    assert failure.errno == errno.EPROTO
    assert kernel.filesystem.destroyed


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_serving_ends_however_the_kernel_says_that_the_mount_is_gone(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def gone(descriptor: int, buffers: list[bytearray]) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "readv", gone)
    filesystem = Small()
    Server(-1, filesystem, lambda request, error: None).serve()
    assert filesystem.destroyed
