"""The serving loop: one request in, one answer out, until the mount is gone.

One thread serves everything: a second one gains nothing while Python holds one lock, and a single
thread makes every request atomic. Requests that the kernel interrupts are answered when they are
done, never earlier: none of them waits for anything but the disk.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import NamedTuple

from cloister.fuse import messages
from cloister.fuse import protocol as p
from cloister.fuse.filesystem import Caller, Filesystem

_WANTED = (
    p.InitFlag.ASYNC_READ
    | p.InitFlag.ATOMIC_O_TRUNC
    | p.InitFlag.BIG_WRITES
    | p.InitFlag.AUTO_INVAL_DATA
    | p.InitFlag.DO_READDIRPLUS
    | p.InitFlag.READDIRPLUS_AUTO
    | p.InitFlag.PARALLEL_DIROPS
    | p.InitFlag.MAX_PAGES
    | p.InitFlag.CACHE_SYMLINKS
)

_PASSTHROUGH = p.InitFlag.INIT_EXT | p.InitFlag.PASSTHROUGH

Answer = bytes | memoryview | list[bytes]

_INIT, _INTERRUPT = int(p.Opcode.INIT), int(p.Opcode.INTERRUPT)
_UNANSWERED = frozenset((_INTERRUPT, int(p.Opcode.FORGET), int(p.Opcode.BATCH_FORGET)))
_GONE = (errno.ENODEV, errno.ECONNABORTED)  # unmounted, or taken down with its last process
_WITHDRAWN = (errno.ENOENT, errno.EINTR, errno.EAGAIN)
"""Errors of reading: the request that was there is gone, or there was none."""


class _Request(NamedTuple):
    """The header of a request and its body."""

    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    def caller(self, umask: int = 0) -> Caller:
        return Caller(self.uid, self.gid, self.pid, umask)


class Server:
    """Answers the kernel's requests on one ``/dev/fuse`` descriptor.

    Args:
        descriptor: an open ``/dev/fuse`` whose number was given to mount(2). It stays the caller's.
        filesystem: what answers.
        on_crash: told of an exception that is not an :class:`OSError`; the program sees ``EIO``
            and serving goes on, because one bad request must not take all files away.
        on_request: called for each request, before it is answered.
        passes_through: agree with the kernel on files behind others; see
            :mod:`cloister.fuse.passthrough`.
    """

    def __init__(
        self,
        descriptor: int,
        filesystem: Filesystem,
        on_crash: Callable[[str, Exception], None],
        on_request: Callable[[], None] = lambda: None,
        *,
        passes_through: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._filesystem = filesystem
        self._on_crash = on_crash
        self._on_request = on_request
        self._wanted = _WANTED | _PASSTHROUGH if passes_through else _WANTED
        self._buffer = bytearray(p.MAX_WRITE + 4096)
        self._view = memoryview(self._buffer)
        self._room = [self._buffer]
        self._answers: dict[int, Callable[[_Request], Answer]] = {
            p.Opcode.LOOKUP: self._lookup,
            p.Opcode.FORGET: self._forget,
            p.Opcode.BATCH_FORGET: self._batch_forget,
            p.Opcode.GETATTR: self._getattr,
            p.Opcode.SETATTR: self._setattr,
            p.Opcode.READLINK: lambda r: filesystem.readlink(r.node),
            p.Opcode.SYMLINK: self._symlink,
            p.Opcode.MKNOD: self._mknod,
            p.Opcode.MKDIR: self._mkdir,
            p.Opcode.UNLINK: self._unlink,
            p.Opcode.RMDIR: self._rmdir,
            p.Opcode.RENAME: self._rename,
            p.Opcode.RENAME2: self._rename2,
            p.Opcode.LINK: self._link,
            p.Opcode.OPEN: self._open,
            p.Opcode.READ: self._read,
            p.Opcode.WRITE: self._write,
            p.Opcode.STATFS: self._statfs,
            p.Opcode.RELEASE: self._release,
            p.Opcode.FSYNC: self._fsync,
            p.Opcode.SETXATTR: self._setxattr,
            p.Opcode.GETXATTR: self._getxattr,
            p.Opcode.LISTXATTR: self._listxattr,
            p.Opcode.REMOVEXATTR: self._removexattr,
            p.Opcode.FLUSH: self._flush,
            p.Opcode.OPENDIR: self._opendir,
            p.Opcode.READDIR: self._readdir,
            p.Opcode.READDIRPLUS: self._readdirplus,
            p.Opcode.RELEASEDIR: self._releasedir,
            p.Opcode.FSYNCDIR: self._fsyncdir,
            p.Opcode.CREATE: self._create,
            p.Opcode.TMPFILE: self._tmpfile,
            p.Opcode.FALLOCATE: self._fallocate,
            p.Opcode.LSEEK: self._lseek,
            p.Opcode.DESTROY: lambda r: b"",
        }
        self._known = {*self._answers, _INIT, _INTERRUPT}

    def serve_until(self, event: int) -> bool:
        """Answer requests until the descriptor ``event`` is readable.

        Return False if the file system was unmounted before.
        """
        events = select.poll()
        events.register(event, select.POLLIN)
        events.register(self._descriptor, select.POLLIN)
        os.set_blocking(self._descriptor, False)  # a request that is there may be withdrawn
        try:
            while event not in dict(events.poll()):
                if not self._serve_one():
                    return False
            return True
        finally:
            os.set_blocking(self._descriptor, True)

    def serve(self) -> None:
        """Answer requests until the file system is unmounted.

        Raises:
            OSError: ``/dev/fuse`` failed in a way that is not the unmount.
        """
        try:
            self._serve_requests()
        finally:
            self._filesystem.destroy()

    def _serve_requests(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Read and answer one request; return False when the file system is unmounted.

        What thousands of requests pass through is kept short.
        """
        try:
            length = os.readv(self._descriptor, self._room)
        except OSError as error:
            if error.errno in _GONE:
                return False
            if error.errno in _WITHDRAWN:
                return True
            raise
        self._on_request()
        size, opcode, unique, node, uid, gid, pid, _, _ = p.IN_HEADER.unpack_from(self._view)
        if size != length:
            raise OSError(errno.EPROTO, f"/dev/fuse: a request of {length} bytes says {size}")
        if opcode not in self._known:
            self._send(unique, errno.ENOSYS, b"")
            return True
        request = _Request(unique, node, uid, gid, pid, self._view[p.IN_HEADER.size : length])
        if opcode == _INIT:
            self._send(unique, 0, messages.init_out(request.body, self._wanted))
        elif opcode not in _UNANSWERED:
            self._send(unique, *self._answer(opcode, request))
        elif opcode != _INTERRUPT:
            self._answer(opcode, request)
        return True

    def _answer(self, opcode: int, request: _Request) -> tuple[int, Answer]:
        """Return an error number (0 is success) and the body of the answer."""
        try:
            return 0, self._answers[opcode](request)
        except OSError as error:
            return error.errno or errno.EIO, b""
        except Exception as error:
            self._on_crash(p.Opcode(opcode).name, error)
            return errno.EIO, b""

    def _send(self, unique: int, error: int, body: Answer) -> None:
        if isinstance(body, list):
            body = b"".join(body)
        header = p.OUT_HEADER.pack(p.OUT_HEADER.size + len(body), -error, unique)
        try:
            os.writev(self._descriptor, (header, body))
        except OSError as problem:
            # ENOENT: the caller was killed meanwhile. Of an unmount the next read tells.
            if problem.errno != errno.ENOENT and problem.errno not in _GONE:
                raise

    def _forget(self, r: _Request) -> bytes:
        self._filesystem.forget(r.node, p.FORGET_IN.unpack_from(r.body)[0])
        return b""

    def _batch_forget(self, r: _Request) -> bytes:
        count, _ = p.BATCH_FORGET_IN.unpack_from(r.body)
        start = p.BATCH_FORGET_IN.size
        end = start + count * p.FORGET_ONE.size
        for node, times in p.FORGET_ONE.iter_unpack(r.body[start:end]):
            self._filesystem.forget(node, times)
        return b""

    def _lookup(self, r: _Request) -> bytes:
        return messages.entry(self._filesystem.lookup(r.node, bytes(r.body[:-1])))

    def _getattr(self, r: _Request) -> bytes:
        flags, _, handle = p.GETATTR_IN.unpack_from(r.body)
        given = handle if flags & p.GETATTR_HAS_HANDLE else None
        return messages.attr_out(r.node, *self._filesystem.getattr(r.node, given))

    def _setattr(self, r: _Request) -> bytes:
        return messages.attr_out(r.node, *self._filesystem.setattr(r.node, messages.change(r.body)))

    def _symlink(self, r: _Request) -> bytes:
        name, target = p.names(r.body)
        return messages.entry(self._filesystem.symlink(r.node, name, target))

    def _mknod(self, r: _Request) -> bytes:
        mode, _, umask, _ = p.MKNOD_IN.unpack_from(r.body)
        (name,) = p.names(r.body, p.MKNOD_IN.size)
        return messages.entry(self._filesystem.mknod(r.node, name, mode, r.caller(umask)))

    def _mkdir(self, r: _Request) -> bytes:
        mode, umask = p.MKDIR_IN.unpack_from(r.body)
        (name,) = p.names(r.body, p.MKDIR_IN.size)
        return messages.entry(self._filesystem.mkdir(r.node, name, mode, r.caller(umask)))

    def _unlink(self, r: _Request) -> bytes:
        self._filesystem.unlink(r.node, bytes(r.body[:-1]))
        return b""

    def _rmdir(self, r: _Request) -> bytes:
        self._filesystem.rmdir(r.node, bytes(r.body[:-1]))
        return b""

    def _rename(self, r: _Request) -> bytes:
        (target,) = p.RENAME_IN.unpack_from(r.body)
        old, new = p.names(r.body, p.RENAME_IN.size)
        self._filesystem.rename(r.node, old, target, new, 0)
        return b""

    def _rename2(self, r: _Request) -> bytes:
        target, flags, _ = p.RENAME2_IN.unpack_from(r.body)
        old, new = p.names(r.body, p.RENAME2_IN.size)
        self._filesystem.rename(r.node, old, target, new, flags)
        return b""

    def _link(self, r: _Request) -> bytes:
        (node,) = p.LINK_IN.unpack_from(r.body)
        (name,) = p.names(r.body, p.LINK_IN.size)
        return messages.entry(self._filesystem.link(node, r.node, name))

    def _open(self, r: _Request) -> bytes:
        flags, _ = p.OPEN_IN.unpack_from(r.body)
        return messages.open_out(self._filesystem.open(r.node, flags, r.caller()))

    def _create(self, r: _Request) -> list[bytes]:
        flags, mode, umask, _ = p.CREATE_IN.unpack_from(r.body)
        (name,) = p.names(r.body, p.CREATE_IN.size)
        entry, opened = self._filesystem.create(r.node, name, flags, mode, r.caller(umask))
        return [messages.entry(entry), messages.open_out(opened)]

    def _tmpfile(self, r: _Request) -> list[bytes]:
        flags, mode, umask, _ = p.CREATE_IN.unpack_from(r.body)
        entry, opened = self._filesystem.tmpfile(r.node, flags, mode, r.caller(umask))
        return [messages.entry(entry), messages.open_out(opened)]

    def _read(self, r: _Request) -> bytes | memoryview:
        handle, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        return self._filesystem.read(r.node, handle, offset, size)

    def _write(self, r: _Request) -> bytes:
        handle, offset, size, how, _, flags, _ = p.WRITE_IN.unpack_from(r.body)
        data = r.body[p.WRITE_IN.size : p.WRITE_IN.size + size]
        # A page of a mapping has its place, whatever handle the kernel writes it through.
        append = bool(flags & os.O_APPEND) and not how & p.WRITE_CACHE
        count = self._filesystem.write(r.node, handle, offset, data, append=append)
        return p.WRITE_OUT.pack(count, 0)

    def _flush(self, r: _Request) -> bytes:
        self._filesystem.flush(r.node, p.FLUSH_IN.unpack_from(r.body)[0])
        return b""

    def _fsync(self, r: _Request) -> bytes:
        handle, flags, _ = p.FSYNC_IN.unpack_from(r.body)
        self._filesystem.fsync(r.node, handle, bool(flags & p.FSYNC_DATA_ONLY))
        return b""

    def _release(self, r: _Request) -> bytes:
        self._filesystem.release(r.node, p.RELEASE_IN.unpack_from(r.body)[0])
        return b""

    def _opendir(self, r: _Request) -> bytes:
        return messages.open_out(self._filesystem.opendir(r.node, r.caller()))

    def _releasedir(self, r: _Request) -> bytes:
        self._filesystem.releasedir(r.node, p.RELEASE_IN.unpack_from(r.body)[0])
        return b""

    def _fsyncdir(self, r: _Request) -> bytes:
        self._filesystem.fsyncdir(r.node)
        return b""

    def _readdir(self, r: _Request) -> bytes:
        handle, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        out = bytearray()
        for position, listed in enumerate(self._filesystem.readdir(r.node, handle, offset)):
            record = messages.dirent(listed.name, listed.node, listed.mode, offset + position + 1)
            if len(out) + len(record) > size:
                break
            out += record
        return bytes(out)

    def _readdirplus(self, r: _Request) -> bytes:
        handle, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        out = bytearray()
        for position, listed in enumerate(self._filesystem.readdir(r.node, handle, offset)):
            name, node, mode = listed
            if (
                len(out) + p.ENTRY_OUT.size + p.ATTR.size + p.DIRENT.size + p.padded(len(name))
                > size
            ):
                break
            out += self._entry_of(r.node, name)
            out += messages.dirent(name, node, mode, offset + position + 1)
        return bytes(out)

    def _entry_of(self, parent: int, name: bytes) -> bytes:
        """Return the entry that READDIRPLUS sends with a name, or zeros: "look it up yourself"."""
        if name not in (b".", b".."):
            try:
                return messages.entry(self._filesystem.entry(parent, name))
            except OSError:
                return bytes(p.ENTRY_OUT.size + p.ATTR.size)
        return bytes(p.ENTRY_OUT.size + p.ATTR.size)

    def _statfs(self, r: _Request) -> bytes:
        s = self._filesystem.statfs(r.node)
        return p.STATFS_OUT.pack(
            s.blocks,
            s.free,
            s.available,
            s.files,
            s.free_files,
            s.block_size,
            s.name_length,
            s.block_size,
            0,
        )

    def _setxattr(self, r: _Request) -> bytes:
        size, flags = p.SETXATTR_IN.unpack_from(r.body)
        name, _, rest = bytes(r.body[p.SETXATTR_IN.size :]).partition(b"\0")
        self._filesystem.setxattr(r.node, name, rest[:size], flags)
        return b""

    def _getxattr(self, r: _Request) -> bytes:
        size, _ = p.GETXATTR_IN.unpack_from(r.body)
        (name,) = p.names(r.body, p.GETXATTR_IN.size)
        return messages.sized(self._filesystem.getxattr(r.node, name), size)

    def _listxattr(self, r: _Request) -> bytes:
        size, _ = p.GETXATTR_IN.unpack_from(r.body)
        return messages.sized(b"".join(n + b"\0" for n in self._filesystem.listxattr(r.node)), size)

    def _removexattr(self, r: _Request) -> bytes:
        self._filesystem.removexattr(r.node, bytes(r.body[:-1]))
        return b""

    def _fallocate(self, r: _Request) -> bytes:
        handle, offset, length, mode, _ = p.FALLOCATE_IN.unpack_from(r.body)
        self._filesystem.fallocate(r.node, handle, offset, length, mode)
        return b""

    def _lseek(self, r: _Request) -> bytes:
        handle, offset, whence, _ = p.LSEEK_IN.unpack_from(r.body)
        return p.LSEEK_OUT.pack(self._filesystem.lseek(r.node, handle, offset, whence))
