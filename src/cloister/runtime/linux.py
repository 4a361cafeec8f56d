"""System calls that Python's standard library of 3.10 does not offer, through the C library.

Numbers are those of x86-64 Linux (``<linux/prctl.h>``, ``<linux/sched.h>``, ``<sys/mount.h>``).
Every function raises :class:`OSError` with the kernel's ``errno``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
from collections.abc import Mapping

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECBIT_NOROOT_AND_LOCKS = 0b00101111  # NOROOT, NO_SETUID_FIXUP, their locks, KEEP_CAPS locked
_ADDR_NO_RANDOMIZE = 0x0040000
_NO_CHANGE = 0xFFFFFFFF
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_FIRST_WITH_SCOPES = 6
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1
_SYS_CAPSET = 126
_SYS_PIVOT_ROOT = 155
_SYS_SECCOMP = 317
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_CLOSE_AT_EXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOUNT_ATTR_NOSUID_NODEV_NOEXEC = 0b1110
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_POSSIBLE_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _descriptor(result: int, what: str) -> int:
    _check(min(result, 0), what)
    return result


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces, unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount, mount(2). ``kind`` None is for bind mounts and remounts."""
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        target,
    )


def nameless_tmpfs(options: Mapping[str, str | None]) -> int:
    """Mount a tmpfs nowhere; return a descriptor of its root, with which it ends. fsopen(2).

    Args:
        options: of the mount; None is the value of one that has none.
    """
    context = _descriptor(_libc.syscall(_SYS_FSOPEN, b"tmpfs", _CLOSE_AT_EXEC), "fsopen")
    try:
        for key, value in options.items():
            how = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else value.encode()
            _check(_libc.syscall(_SYS_FSCONFIG, context, how, key.encode(), text, 0), key)
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), "tmpfs")
        attributes = _MOUNT_ATTR_NOSUID_NODEV_NOEXEC
        mounted = _libc.syscall(_SYS_FSMOUNT, context, _CLOSE_AT_EXEC, attributes)
        return _descriptor(mounted, "fsmount")
    finally:
        os.close(context)


def unmount_lazily(target: str) -> None:
    """Detach a mount now and drop it when nobody uses it, umount2(2) with MNT_DETACH."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def pivot_root_here() -> None:
    """Make the current directory the root and drop the old one, pivot_root(2).

    The old root is stacked on top of the new one for a moment and detached from there, so that no
    directory is needed to hold it.
    """
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    unmount_lazily(".")
    os.chdir("/")


FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100


_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_SIZE_OF_HOW = ctypes.c_size_t(24)  # struct open_how: flags, mode, resolve


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open a directory below another without following any link, openat2(2).

    Args:
        directory: descriptor of the one above.
        path: relative; no part of it is ``..``.
        flags: those of open(2), O_NOFOLLOW among them.

    Raises:
        OSError: ELOOP: a link is on the way.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("=QQQ", flags, 0, resolve)
    result = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, _SIZE_OF_HOW)
    if result >= 0:
        return int(result)
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        return _open_step_by_step(directory, path, flags)
    raise OSError(number, os.strerror(number), path)


def _open_step_by_step(directory: int, path: str, flags: int) -> int:
    """Do what :func:`open_beneath` does on kernels before 5.6."""
    at = os.dup(directory)
    for name in path.split("/"):
        above = at
        try:
            at = os.open(name, flags, dir_fd=above)
        except NotADirectoryError:
            if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
            raise
        finally:
            os.close(above)
    return at


def rename(old: str, new: str, flags: int) -> None:
    """Rename with flags, renameat2(2)."""
    arguments = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags))
    _check(_libc.renameat2(*arguments), new)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Reserve, punch or zero a range, fallocate(2)."""
    place = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
    _check(_libc.fallocate(descriptor, mode, *place), "fallocate")


def die_with_parent(signal: int) -> None:
    """Ask for ``signal`` when the parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def set_dumpable(allowed: bool) -> None:
    """Allow or forbid core dumps, ptrace and ``/proc/PID/mem`` of this process."""
    _prctl(_PR_SET_DUMPABLE, int(allowed))


def keep_memory_private() -> None:
    """Keep this process out of core dumps and debuggers: its memory holds keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_dumpable(False)


def may_fix_addresses() -> bool:
    """Tell whether this process may switch off the randomisation of addresses (personality(2)).

    It is switched on again; the next program that it executes would have been the first without.
    """
    present = _libc.personality(_NO_CHANGE)
    allowed = present >= 0 and _libc.personality(present | _ADDR_NO_RANDOMIZE) >= 0
    if allowed:
        _libc.personality(present)
    return bool(allowed)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def drop_privileges() -> None:
    """Give up every capability for good, in this process and whatever it executes."""
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT_AND_LOCKS)
    for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                break  # past the last capability that this kernel knows
            _check(-1, f"dropping capability {capability}")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.syscall(_SYS_CAPSET, header, nothing), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def install_filter(program: bytes, *, listener: bool = False) -> int | None:
    """Install a system call filter for good; needs no-new-privileges.

    Args:
        program: array of ``struct sock_filter``, 8 bytes each.
        listener: return a descriptor through which another process answers the calls for which
            the filter asks.
    """
    memory = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(memory))
    pointer = ctypes.create_string_buffer(header, len(header))
    flags = ctypes.c_ulong(_SECCOMP_FILTER_FLAG_NEW_LISTENER if listener else 0)
    result = _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, pointer)
    _check(min(result, 0), "system call filter")
    return int(result) if listener else None


def leave_abstract_sockets_of_others() -> None:
    """Keep the calling process from UNIX sockets with abstract names that others made.

    Such names belong to the network namespace, which a program shares with the host. Landlock can
    do this since Linux 6.12; on an older kernel nothing is done.
    """
    version = _libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < _LANDLOCK_FIRST_WITH_SCOPES:
        return
    ruleset = struct.pack("=QQQ", 0, 0, _LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    descriptor = _libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0
    )
    _check(min(descriptor, 0), "Landlock ruleset")
    try:
        _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, descriptor, 0), "Landlock")
    finally:
        os.close(descriptor)


def current_processor() -> int:
    """Return the number of the processor on which the caller runs."""
    processor = int(_libc.sched_getcpu())
    _check(min(processor, 0), "sched_getcpu")
    return processor


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")
