"""The system call filter of the application: what a library OS does not offer does not exist.

A classic BPF program over ``struct seccomp_data`` (seccomp(2)). Calls that change mounts, enter or
make namespaces, look into other processes or reach wide kernel interfaces answer ``ENOSYS``, as
they would in a kernel without them. ``clone3`` answers so too, because its flags lie in memory that
a filter cannot read; C libraries then use ``clone``, whose flags are checked.
"""

from __future__ import annotations

import errno
from struct import Struct

_FILTER = Struct("=HBBI")  # code, jump if true, jump if false, constant

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data: number, architecture, then 64-bit arguments from 16 on.
_NUMBER = 0
_ARCHITECTURE = 4
_FIRST_ARGUMENT = 16
_SECOND_ARGUMENT = 24

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_NO_SUCH_CALL = 0x00050000 | errno.ENOSYS
_NOT_PERMITTED = 0x00050000 | errno.EPERM

_X86_64 = 0xC000003E
_X32_CALLS = 0x40000000

_CLONE = 56
_IOCTL = 16
_NEW_NAMESPACES = 0x7E020000 | 0x80  # CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS,TIME}
_PUSH_INTO_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

ABSENT: dict[str, int] = {
    # mounts and roots
    "pivot_root": 155,
    "chroot": 161,
    "mount": 165,
    "umount2": 166,
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
    "fanotify_init": 300,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
}
"""x86-64 numbers (``arch/x86/entry/syscalls/syscall_64.tbl``) of the calls that do not exist."""


def filter_program() -> bytes:
    """Return the filter as an array of ``struct sock_filter``, 8 bytes each.

    Foreign architectures kill the process: their numbers mean other calls.
    """
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_CALLS),
        (_RETURN, 0, 0, _NO_SUCH_CALL),
    ]
    for number in sorted(ABSENT.values()):
        instructions += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    instructions += [
        (_JUMP_EQUAL, 0, 3, _CLONE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 4, _IOCTL),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, _PUSH_INTO_TERMINAL[0]),
        (_JUMP_EQUAL, 0, 1, _PUSH_INTO_TERMINAL[1]),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(_FILTER.pack(*instruction) for instruction in instructions)
