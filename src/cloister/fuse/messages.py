"""Turning Python's words into the kernel's structures and back: pure functions over bytes."""

from __future__ import annotations

import errno
import os

from cloister.errors import CloisterError
from cloister.fuse import protocol as p
from cloister.fuse.filesystem import Attributes, Change, Entry, Opened


def init_out(body: memoryview, wanted: int) -> bytes:
    """Answer INIT, with which the kernel begins.

    Args:
        body: ``fuse_init_in``.
        wanted: the capabilities that are used where the kernel offers them.

    Raises:
        CloisterError: it speaks a version of the protocol that is too old.
    """
    major, minor, readahead, offered = p.INIT_IN.unpack_from(body)
    if major != p.MAJOR or minor < p.OLDEST_MINOR:
        raise CloisterError(
            f"/dev/fuse: the kernel speaks FUSE {major}.{minor}, "
            f"at least {p.MAJOR}.{p.OLDEST_MINOR} is needed",
            hint="use Linux 5.4 or later",
        )
    if offered & p.InitFlag.INIT_EXT:
        offered |= p.INIT_IN_MORE.unpack_from(body, p.INIT_IN.size)[0] << 32
    agreed = int(wanted & offered)
    return p.INIT_OUT.pack(
        p.MAJOR,
        min(minor, p.MINOR),
        min(readahead, p.READAHEAD) or readahead,
        agreed & 0xFFFFFFFF,
        64,
        48,
        p.MAX_WRITE,
        1,
        p.MAX_WRITE // 4096,
        0,
        agreed >> 32,
        1 if agreed & p.InitFlag.PASSTHROUGH else 0,
        0,
    )


def change(body: memoryview) -> Change:
    """Turn ``fuse_setattr_in`` into a :class:`Change`."""
    (
        valid,
        _,
        handle,
        size,
        _,
        atime,
        mtime,
        _,
        atime_nsec,
        mtime_nsec,
        _,
        mode,
        _,
        uid,
        gid,
        _,
    ) = p.SETATTR_IN.unpack_from(body)
    flags = p.SetAttr
    return Change(
        mode=mode if valid & flags.MODE else None,
        uid=uid if valid & flags.UID else None,
        gid=gid if valid & flags.GID else None,
        size=size if valid & flags.SIZE else None,
        atime_ns=_nanoseconds(atime, atime_nsec) if valid & flags.ATIME else None,
        mtime_ns=_nanoseconds(mtime, mtime_nsec) if valid & flags.MTIME else None,
        handle=handle if valid & flags.HANDLE else None,
    )


def _nanoseconds(seconds: int, nanoseconds: int) -> int:
    """Join the two fields of a time; seconds are signed 64 bit in an unsigned field."""
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


def _attr(node: int, a: Attributes) -> bytes:
    atime, atime_nsec = divmod(a.atime_ns, 1_000_000_000)
    mtime, mtime_nsec = divmod(a.mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = divmod(a.ctime_ns, 1_000_000_000)
    return p.ATTR.pack(
        a.number or node,
        a.size,
        a.blocks,
        atime & 0xFFFFFFFFFFFFFFFF,
        mtime & 0xFFFFFFFFFFFFFFFF,
        ctime & 0xFFFFFFFFFFFFFFFF,
        atime_nsec,
        mtime_nsec,
        ctime_nsec,
        a.mode,
        a.links,
        a.uid,
        a.gid,
        a.device,
        a.block_size,
        0,
    )


def entry(entry: Entry) -> bytes:
    """Return ``fuse_entry_out``: the answer to LOOKUP and whatever creates a name."""
    node, attributes, name_seconds, attribute_seconds = entry
    return p.ENTRY_OUT.pack(
        node,
        0,
        int(name_seconds),
        int(attribute_seconds),
        int(name_seconds % 1 * 1e9),
        int(attribute_seconds % 1 * 1e9),
    ) + _attr(node, attributes)


def attr_out(node: int, attributes: Attributes, seconds: float) -> bytes:
    """Return the answer to GETATTR and SETATTR."""
    return p.ATTR_OUT.pack(int(seconds), int(seconds % 1 * 1e9), 0) + _attr(node, attributes)


def open_out(opened: Opened) -> bytes:
    """Return the answer to OPEN and OPENDIR."""
    if opened.behind is None:
        return p.OPEN_OUT.pack(opened.handle, opened.flags, 0)
    # With a word on caching the kernel refuses such an open.
    flags = opened.flags & ~p.OpenFlag.KEEP_CACHE | p.OpenFlag.PASSTHROUGH
    return p.OPEN_OUT.pack(opened.handle, flags, opened.behind)


def dirent(name: bytes, node: int, mode: int, next_offset: int) -> bytes:
    """Return one padded directory entry; ``next_offset`` is where the listing goes on."""
    record = p.DIRENT.pack(node, next_offset, len(name), mode >> 12) + name
    return record.ljust(p.padded(len(record)), b"\0")


def sized(value: bytes, size: int) -> bytes:
    """Answer an extended-attribute request: size 0 asks how long the value is."""
    if size == 0:
        return p.XATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
