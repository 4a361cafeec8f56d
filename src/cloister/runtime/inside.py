"""The forked processes of a sandbox: namespaces, mounts, process 1, and what becomes the program.

Nothing may be imported here after the root has changed: the interpreter's files are gone by then.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

from cloister.runtime import linux
from cloister.runtime.foresight import fetch_ahead
from cloister.runtime.forks import LAST_STANDARD_STREAM, never_returning
from cloister.runtime.limits import Limits, impose
from cloister.runtime.machine import SHOWN_OF_PROC
from cloister.runtime.plan import (
    EXITED,
    LENGTH,
    MEMORY,
    NOT_STARTED,
    PREPARING,
    READY,
    STARTING,
    STATUS,
    TOLD,
    MemoryUse,
    Plan,
    Stage,
)
from cloister.runtime.processors import Processors
from cloister.runtime.seccomp import filter_program
from cloister.runtime.supervisor import Supervisor
from cloister.runtime.tree import ABSENT_FILE, EMPTY_DIRECTORY, HIDDEN, KernelMount

_STAGING = "/tmp"  # noqa: S108  (covered by a mount that only the new namespace sees)

_HINTS = {
    errno.ENOENT: "libos.entrypoint is a path inside the tree: does an entry of fs.mounts show it,"
    " and is the file there on the host? Or does it begin with #! and a program that is not in the"
    " tree? cloister run --shell looks around inside",
    errno.EACCES: "is it executable (chmod +x), and does sgx.trusted_files list it?",
    errno.ENOEXEC: "it is no program of this machine, nor a script that begins with #!",
    errno.E2BIG: "sys.stack.size has to hold arguments and environment",
}
"""What to do where the program could not be started."""


def enter_namespaces(
    control: socket.socket, processors: Processors, uid: int, gid: int
) -> NoReturn:
    """First forked process: namespaces and the tree's mount; forks process 1 and exits."""
    step = "user namespace"
    try:
        host_uid, host_gid = os.geteuid(), os.getegid()
        linux.unshare(
            linux.CLONE_NEWUSER
            | linux.CLONE_NEWNS
            | linux.CLONE_NEWPID
            | linux.CLONE_NEWIPC
            | linux.CLONE_NEWUTS
        )
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {host_uid} 1")
        _write("/proc/self/gid_map", f"{gid} {host_gid} 1")
        step = "/dev/fuse"
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        step = "mount"
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        options = f"fd={fuse},rootmode=40755,user_id={uid},group_id={gid},default_permissions"
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("cloister", _STAGING, "fuse.cloister", flags, options)
        step = "fork"
        init = os.fork()
        if init == 0:
            with never_returning():
                os.close(fuse)
                _run_as_process_one(control, processors)
        socket.send_fds(control, [b"fuse"], [fuse])
        control.sendall(LENGTH.pack(init))
    except OSError as error:
        control.sendall(f"{step}\0{error.strerror}".encode())
        os._exit(1)
    os._exit(0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _run_as_process_one(control: socket.socket, processors: Processors) -> NoReturn:
    """Process 1: mounts, starts the program, reaps, reports how it ended."""
    try:
        linux.set_dumpable(False)
        stage = _receive_stage(control)
        # Only now is the runtime the parent: the process that forked this one has been reaped.
        linux.die_with_parent(signal.SIGKILL)
        _set_host_name(stage.host_name)
        hidden = os.open(f"{_STAGING}{HIDDEN}", os.O_PATH | os.O_CLOEXEC)
        for mount in stage.mounts:
            _mount(mount, f"/proc/self/fd/{hidden}")
        os.close(hidden)
        os.chdir(_STAGING)
        linux.pivot_root_here()
        ours, theirs = socket.socketpair()
        program = os.fork()
        if program == 0:
            with never_returning():
                ours.close()
                _become_program(control, theirs, stage.limits)
        theirs.close()
        fetcher = _Fetcher(stage, processors)
        control.sendall(READY)
        supervisor = Supervisor(_listener_from(ours), stage.limits)
        fetcher.keys_are_there()
        code = _reap_until(program, supervisor, fetcher)
        for text in supervisor.reached.values():
            control.sendall(STATUS.pack(TOLD, len(text)) + text.encode("ascii"))
        held = json.dumps([_memory_use(each.path) for each in stage.mounts if each.kind == "tmpfs"])
        control.sendall(STATUS.pack(MEMORY, len(held)) + held.encode("ascii"))
    except OSError as error:
        control.sendall(b"!")
        _fail(control, f"{PREPARING}: {error.filename or ''}: {error.strerror}")
    control.sendall(STATUS.pack(EXITED, code))
    os._exit(0)


def _set_host_name(name: str) -> None:
    try:
        socket.sethostname(name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "host name") from error


class _Fetcher:
    """The process that fetches ahead, on the processor that the runtime shares meanwhile."""

    def __init__(self, stage: Stage, processors: Processors) -> None:
        self._processors = processors
        self._number = 0
        keys, self._keys = os.pipe2(os.O_CLOEXEC)
        if stage.foreseen or stage.foreseen_later:
            self._number = os.fork()
            if self._number == 0:
                with never_returning():
                    os.close(self._keys)
                    _fetch(stage, keys)
        os.close(keys)

    def keys_are_there(self) -> None:
        """Let it go on with what is encrypted."""
        os.close(self._keys)

    def has_ended(self, number: int) -> None:
        """Take note if the process of that number was the fetcher: it is done, or was killed."""
        if number == self._number:
            self._processors.part()


def _fetch(stage: Stage, keys: int) -> None:
    if stage.processor is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, {stage.processor})
    fetch_ahead(stage.foreseen)
    os.read(keys, 1)
    fetch_ahead(stage.foreseen_later)


def _memory_use(path: str) -> MemoryUse:
    """Ask a tmpfs mount what it holds; its root directory does not count."""
    held = os.statvfs(path)
    size = (held.f_blocks - held.f_bfree) * held.f_frsize
    return MemoryUse(path, held.f_files - held.f_ffree - 1, size)


def _receive_stage(control: socket.socket) -> Stage:
    fields = _receive(control)
    fields["mounts"] = [KernelMount(**mount) for mount in fields["mounts"]]
    fields["limits"] = Limits(**fields["limits"])
    return Stage(**fields)


def _receive(control: socket.socket) -> dict[str, Any]:
    (size,) = LENGTH.unpack(_exactly(control, LENGTH.size))
    fields: dict[str, Any] = json.loads(_exactly(control, size))
    return fields


def _exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = control.recv(size - len(data))
        if not piece:
            os._exit(1)  # the runtime died first
        data += piece
    return data


def _mount(mount: KernelMount, hidden: str) -> None:
    """Mount something over the tree.

    Args:
        mount: what and where.
        hidden: the tree's hidden directory, by a path that stays valid when procfs covers it.
    """
    target = f"{_STAGING}{mount.path}"
    source = f"{hidden}/{mount.source}" if mount.kind == "tree" else mount.source
    if not os.path.lexists(target):
        _make_place(target, is_directory=not source or os.path.isdir(source))
    if mount.kind == "tmpfs":
        mode = "mode=755" if mount.path == "/" else "mode=1777"
        linux.mount("tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, mode)
    elif mount.kind == "proc":
        _mount_proc(target, hidden)
    elif mount.kind == "devpts":
        options = "newinstance,ptmxmode=0666,mode=620"
        linux.mount("devpts", target, "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, options)
    else:
        linux.mount(source, target, None, linux.MS_BIND)


def _make_place(target: str, *, is_directory: bool) -> None:
    """Make a mount point where there is none yet: below a tmpfs."""
    if is_directory:
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _mount_proc(target: str, hidden: str) -> None:
    """Mount procfs and cover what it tells, or lets root change, of the whole machine.

    Processes that the program could not trace are invisible, this one among them.
    """
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", target, "proc", flags, "hidepid=4")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        linux.mount("proc", target, "proc", flags, "hidepid=2")  # before Linux 5.8
    # The program must not regain capabilities in a user namespace of its own.
    _write(f"{target}/sys/user/max_user_namespaces", "0")
    for name in os.listdir(target):
        path = f"{target}/{name}"
        if name.isdigit() or name in SHOWN_OF_PROC or os.path.islink(path):
            continue
        cover = EMPTY_DIRECTORY if os.path.isdir(path) else ABSENT_FILE
        linux.mount(f"{hidden}/{cover}", path, None, linux.MS_BIND)


def _listener_from(program: socket.socket) -> int | None:
    """Return the descriptor on which the program's calls wait for an answer, if some do."""
    _, descriptors, _, _ = socket.recv_fds(program, 1, 1)
    program.close()
    return descriptors[0] if descriptors else None


def _reap_until(program: int, supervisor: Supervisor, fetcher: _Fetcher) -> int:
    """Reap every orphan and answer the program's calls until it ends; return its code.

    The code is what a shell would show.
    """
    child_died, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    events = select.poll()
    events.register(child_died, select.POLLIN)
    if supervisor.listener is not None:
        events.register(supervisor.listener, select.POLLIN)
    while True:
        for pid, status in _ended():
            if pid == program:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            fetcher.has_ended(pid)
        for descriptor, event in events.poll():
            if descriptor == child_died:
                os.read(child_died, 4096)
            elif event & select.POLLIN:
                supervisor.answer()
            else:
                events.unregister(descriptor)  # nobody is left who could ask


def _ended() -> Iterator[tuple[int, int]]:
    """Reap, and yield number and status of, every child that has ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        yield pid, status


def _become_program(control: socket.socket, init: socket.socket, limits: Limits) -> NoReturn:
    """Process 2: wait for the plan and, without privileges, become the program.

    Args:
        control: the runtime, who has the plan and is told why there is no program.
        init: process 1, who gets the descriptor on which calls wait for its answer.
        limits: what the program may have at most.
    """
    plan = Plan(**_receive(control))
    try:
        for number in (*plan.heeded, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        control.sendall(STARTING)
        _keep_only_standard_streams()
        _enter(plan.directory)
        linux.drop_privileges()
        linux.leave_abstract_sockets_of_others()
        filter_of_calls = filter_program(limits)
        listener = linux.install_filter(filter_of_calls, listener=limits.is_watched)
        socket.send_fds(init, [b"!"], [] if listener is None else [listener])
        impose(limits)
        os.execve(plan.executable, plan.arguments, plan.environment)
    except OSError as error:
        name = error.filename or plan.executable
        by_exec = error.filename == plan.executable
        hint = _HINTS.get(error.errno or 0, "") if by_exec else ""
        _fail(control, f"{name}: cannot start: {error.strerror}\0{hint}")
    except ValueError as error:
        _fail(control, f"{plan.executable}: cannot start: {error}")


def _enter(directory: str) -> None:
    """Go where the program starts.

    Raises:
        ValueError: there is no such directory.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        raise ValueError(f"fs.start_dir = {directory}: {error.strerror}") from error


def _keep_only_standard_streams() -> None:
    """Close at exec what the caller left open: a descriptor of the host's leads out of the tree.

    Raises:
        ValueError: a standard stream is a directory, which would do the same.
    """
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if descriptor > LAST_STANDARD_STREAM:
                os.set_inheritable(descriptor, False)
            elif stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise ValueError(f"standard stream {descriptor} is a directory of the host")


def _fail(control: socket.socket, message: str) -> NoReturn:
    text = message.encode("utf-8", "surrogateescape")
    control.sendall(STATUS.pack(NOT_STARTED, len(text)) + text)
    os._exit(127)
