"""The system call filter of the application: what a library OS does not offer does not exist.

A classic BPF program over ``struct seccomp_data`` (seccomp(2)). Calls that change mounts, enter or
make namespaces, look into other processes or reach wide kernel interfaces answer ``ENOSYS``, as
they would in a kernel without them. ``clone3`` answers so too, because its flags lie in memory that
a filter cannot read; C libraries then use ``clone``, whose flags are checked. Of socket families
there are those that programs talk to each other with (UNIX, IPv4, IPv6) and the netlink family by
which the C library lists network interfaces.

Programs ask of every file that they open whether it is a terminal, and in the tree the question
goes to the runtime and back. Where the manifest says that the program has none
(``cloister.terminals = false``), the filter answers.

Where limits need somebody's word, the calls that may reach one wait for process 1
(:mod:`cloister.runtime.supervisor`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct

from cloister.runtime.limits import Limits

_FILTER = Struct("=HBBI")  # code, jump if true, jump if false, constant

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data: number, architecture, then 64-bit arguments from 16 on.
_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ASK = 0x7FC00000  # SECCOMP_RET_USER_NOTIF
_FAIL = 0x00050000  # SECCOMP_RET_ERRNO; the error number in its low bits

_X86_64 = 0xC000003E
_X32_CALLS = 0x40000000

_NEW_NAMESPACES = 0x7E020000 | 0x80  # CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS,TIME}
_CLONE_THREAD = 0x10000
_TERMINAL_TRICKS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x802C542A)  # TCGETS, TIOCGWINSZ, TCGETS2
_NEGATIVE = 0x80000000
_FIRST_OF_ITS_OWN = 3  # descriptors below are the caller's streams
_SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_AF_NETLINK = 16
_NETLINK_ROUTE = 0
_PLAIN_PERSONALITIES = (0, 0xFFFFFFFF)  # Linux; a question

LARGE_SHARE = 32
"""A mapping of this share of the enclave waits for process 1, which sees whether it will fail."""


class Call(IntEnum):
    """x86-64 numbers of the calls whose arguments are looked at."""

    MMAP = 9
    IOCTL = 16
    MREMAP = 25
    SOCKET = 41
    CLONE = 56
    FORK = 57
    VFORK = 58
    PERSONALITY = 135
    EXIT_GROUP = 231
    TGKILL = 234


ABSENT: dict[str, int] = {
    # mounts and roots
    "pivot_root": 155,
    "chroot": 161,
    "mount": 165,
    "umount2": 166,
    "sysfs": 139,
    "swapon": 167,
    "swapoff": 168,
    "quotactl": 179,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "statmount": 457,
    "listmount": 458,
    "open_tree_attr": 467,
    # namespaces
    "unshare": 272,
    "setns": 308,
    "clone3": 435,
    # other processes
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    # the machine
    "syslog": 103,
    "acct": 163,
    "settimeofday": 164,
    "reboot": 169,
    "modify_ldt": 154,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "clock_settime": 227,
    "kexec_load": 246,
    "finit_module": 313,
    "kexec_file_load": 320,
    # wide kernel interfaces
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "perf_event_open": 298,
    "lookup_dcookie": 212,
    "fanotify_init": 300,
    "fanotify_mark": 301,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
}
"""x86-64 numbers (``arch/x86/entry/syscalls/syscall_64.tbl``) of the calls that do not exist."""

_Instruction = tuple[int, int, int, int]


def filter_program(limits: Limits) -> bytes:
    """Return the filter as an array of ``struct sock_filter``, 8 bytes each.

    Foreign architectures kill the process: their numbers mean other calls.

    Args:
        limits: those that are watched make calls wait for process 1.
    """
    instructions: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_CALLS),
        _fail(errno.ENOSYS),
    ]
    for call, judge in _judgements(limits):
        instructions += [(_JUMP_EQUAL, 0, len(judge), call), *judge]
    for number in sorted(ABSENT.values()):
        instructions += [(_JUMP_EQUAL, 0, 1, number), _fail(errno.ENOSYS)]
    instructions.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_FILTER.pack(*instruction) for instruction in instructions)


def _judgements(limits: Limits) -> Iterator[tuple[Call, list[_Instruction]]]:
    """Yield what is done about calls whose arguments count, the most frequent ones first."""
    if limits.address_space is not None:
        large = max(limits.address_space // LARGE_SHARE, 1)
        yield Call.MMAP, _ask_if_large(1, large)
        yield Call.MREMAP, _ask_if_large(2, large)
        yield Call.EXIT_GROUP, [_load(0), (_JUMP_EQUAL, 0, 1, 0), _ALLOWED, _ASKED]
        yield Call.TGKILL, [_load(2), (_JUMP_EQUAL, 0, 1, 6), _ASKED, _ALLOWED]  # SIGABRT
    yield Call.IOCTL, _judge_ioctl(limits)
    yield Call.SOCKET, _judge_socket()
    yield Call.CLONE, _judge_clone(limits)
    if not limits.subprocesses:
        yield Call.FORK, [_ASKED]
        yield Call.VFORK, [_ASKED]
    yield Call.PERSONALITY, _allow_only(0, _PLAIN_PERSONALITIES, errno.EPERM)


def _load(argument: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4 * high)


def _fail(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _FAIL | number)


_ALLOWED: _Instruction = (_RETURN, 0, 0, _ALLOW)
_ASKED: _Instruction = (_RETURN, 0, 0, _ASK)


def _ask_if_large(argument: int, size: int) -> list[_Instruction]:
    """Compare 64 bits; a size of 4 GiB or more asks for more than any threshold below it."""
    threshold = min(size, 0xFFFFFFFF)
    return [
        _load(argument, high=True),
        (_JUMP_EQUAL, 0, 2, 0),
        _load(argument),
        (_JUMP_AT_LEAST, 0, 1, threshold),
        _ASKED,
        _ALLOWED,
    ]


def _refuse_if_one_of(argument: int, values: tuple[int, ...], number: int) -> list[_Instruction]:
    tests = [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_load(argument), *tests, _ALLOWED, _fail(number)]


def _unless_one_of(argument: int, values: tuple[int, ...], skip: int) -> list[_Instruction]:
    """Skip so many instructions if the argument is none of the values."""
    last = len(values) - 1
    tests = [(_JUMP_EQUAL, last - i, skip * (i == last), value) for i, value in enumerate(values)]
    return [_load(argument), *tests]


def _allow_only(argument: int, values: tuple[int, ...], number: int) -> list[_Instruction]:
    tests = [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_load(argument), *tests, _fail(number), _ALLOWED]


def _judge_socket() -> list[_Instruction]:
    families = _allow_only(0, _SOCKET_FAMILIES, errno.EAFNOSUPPORT)
    netlink = [
        _load(0),
        (_JUMP_EQUAL, 0, 4, _AF_NETLINK),
        _load(2),
        (_JUMP_EQUAL, 1, 0, _NETLINK_ROUTE),
        _fail(errno.EAFNOSUPPORT),
        _ALLOWED,
    ]
    return netlink + families


def _judge_ioctl(limits: Limits) -> list[_Instruction]:
    """Where there are no terminals, questions whether a descriptor is one need no file system.

    Standard streams are left to the kernel, where the answer costs nothing, and so are negative
    numbers, which are no descriptors. A closed one above is called no terminal: ``ENOTTY`` for
    ``EBADF`` is what this costs.
    """
    tricks = _refuse_if_one_of(1, _TERMINAL_TRICKS, errno.EPERM)
    if limits.terminals:
        return tricks
    answer = [
        _load(0),
        (_JUMP_ANY_BIT, 1, 0, _NEGATIVE),
        (_JUMP_AT_LEAST, 1, 0, _FIRST_OF_ITS_OWN),
        _ALLOWED,
        _fail(errno.ENOTTY),
    ]
    return [*_unless_one_of(1, _TERMINAL_QUESTIONS, skip=len(answer)), *answer, *tricks]


def _judge_clone(limits: Limits) -> list[_Instruction]:
    thread = _ALLOWED if limits.threads is None else _ASKED
    process = _ALLOWED if limits.subprocesses else _ASKED
    return [
        _load(0),
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        _fail(errno.EPERM),
        (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD),
        thread,
        process,
    ]
