"""Message tables of the FUSE kernel protocol, version 7.

Source: the kernel's own ``include/uapi/linux/fuse.h``. All integers are in the byte order of the
machine, which on x86-64 is little-endian. Each table is a :class:`struct.Struct` named after the C
structure; the field names stand in the comment beside it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 40
OLDEST_MINOR = 31
"""Linux 5.4; older kernels lay out some messages differently and are refused."""

MAX_WRITE = 1 << 20
"""Largest WRITE and READ in bytes that we take; the kernel's own limit is 256 pages."""

READAHEAD = 1 << 20
"""What we allow; the kernel stays at 128 KiB unless the mount's bdi is raised."""

ROOT_NODE = 1


class Opcode(IntEnum):
    """What the kernel asks for (``enum fuse_opcode``)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51


class InitFlag(IntFlag):
    """Capabilities agreed on in INIT (``FUSE_*`` flags of ``fuse_init_in/out``)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


class OpenFlag(IntFlag):
    """How the kernel may cache an open file or directory (``FOPEN_*``)."""

    NONE = 0
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class SetAttr(IntFlag):
    """Which fields of SETATTR count (``FATTR_*``)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    HANDLE = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


BACKING_OPEN = 0x4010E501
"""ioctl(2) of ``/dev/fuse``: announces a file behind another one, returns its number."""

GETATTR_HAS_HANDLE = 1
WRITE_CACHE = 1

# Every request starts with this, every answer with the second one.
IN_HEADER = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = Struct("=IiQ")  # len error unique

INIT_IN = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_MORE = Struct("=I")  # flags2 (unused follows), if the flags have INIT_EXT
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran
# max_pages map_alignment flags2 max_stack_depth request_timeout

ATTR = Struct("=QQQQQQIIIIIIIIII")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize
# flags
ENTRY_OUT = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_nsec attr_nsec
ATTR_OUT = Struct("=QII")  # attr_valid attr_valid_nsec dummy
OPEN_OUT = Struct("=QII")  # fh open_flags backing_id
BACKING_MAP = Struct("=iIQ")  # fd flags padding: argument of BACKING_OPEN
WRITE_OUT = Struct("=II")  # size padding
STATFS_OUT = Struct("=QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize padding
XATTR_OUT = Struct("=II")  # size padding
LSEEK_OUT = Struct("=Q")  # offset
DIRENT = Struct("=QQII")  # ino off namelen type

FORGET_IN = Struct("=Q")  # nlookup
BATCH_FORGET_IN = Struct("=II")  # count dummy
FORGET_ONE = Struct("=QQ")  # nodeid nlookup
GETATTR_IN = Struct("=IIQ")  # getattr_flags dummy fh
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid
# gid unused5
OPEN_IN = Struct("=II")  # flags open_flags
CREATE_IN = Struct("=IIII")  # flags mode umask open_flags
MKNOD_IN = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN = Struct("=II")  # mode umask
RENAME_IN = Struct("=Q")  # newdir
RENAME2_IN = Struct("=QII")  # newdir flags padding
LINK_IN = Struct("=Q")  # oldnodeid
READ_IN = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
RELEASE_IN = Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN = Struct("=QIIQ")  # fh unused padding lock_owner
FSYNC_IN = Struct("=QII")  # fh fsync_flags padding
SETXATTR_IN = Struct("=II")  # size flags
GETXATTR_IN = Struct("=II")  # size padding
FALLOCATE_IN = Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN = Struct("=QQII")  # fh offset whence padding

FSYNC_DATA_ONLY = 1


def names(body: memoryview, offset: int = 0) -> list[bytes]:
    """Return the NUL-terminated names that end a request, from ``offset`` on."""
    return bytes(body[offset:]).split(b"\0")[:-1]


def padded(length: int) -> int:
    """Round ``length`` bytes up to the 8-byte grid of directory entries."""
    return (length + 7) & ~7
