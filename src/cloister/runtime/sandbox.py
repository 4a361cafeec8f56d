"""The application's side of the wall: namespaces, mounts, its first process.

Two processes are forked before any key exists in memory. The first enters new user, mount, PID,
IPC and UTS namespaces, opens ``/dev/fuse`` there (opened elsewhere, mount(2) refuses it), mounts
the tree and passes the descriptor back. The second is process 1 of the new PID namespace: it waits
for the plan, mounts what belongs to the kernel, makes the tree its root and starts the program as
process 2 without any privilege. When either side dies the kernel removes every process and every
mount of the other; nothing has a name on the host.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple, NoReturn

from cloister.errors import ProgramStartError, SandboxError
from cloister.runtime import linux
from cloister.runtime.foresight import Spans, read_ahead
from cloister.runtime.forks import FOR_THE_PROGRAM, fork_into, never_returning
from cloister.runtime.limits import Limits, impose
from cloister.runtime.machine import SHOWN_OF_PROC
from cloister.runtime.seccomp import filter_program
from cloister.runtime.supervisor import Supervisor
from cloister.runtime.tree import ABSENT_FILE, EMPTY_DIRECTORY, HIDDEN, KernelMount

_STAGING = "/tmp"  # noqa: S108  (covered by a mount that only the new namespace sees)
_CREDENTIALS = struct.Struct("=iII")  # pid uid gid
_STATUS = struct.Struct("=cI")  # kind, value
_EXITED, _NOT_STARTED, _TOLD, _MEMORY = b"x", b"e", b"t", b"m"
_LENGTH = struct.Struct("=I")
_PREPARING = "preparing the sandbox"
_LAST_STANDARD_STREAM = 2


class MemoryUse(NamedTuple):
    """What a tmpfs mount holds.

    Attributes:
        path: where the program sees it.
        files: files and directories in it.
        size: bytes.
    """

    path: str
    files: int
    size: int


@dataclass(frozen=True)
class Plan:
    """What the first process is told once the keys are in place.

    Attributes:
        executable: path of the program inside the tree.
        arguments: its argument vector, element 0 included.
        environment: its whole environment.
        directory: where it starts.
        mounts: what the kernel mounts over the tree, in order.
        host_name: name of the machine that it sees.
        limits: what it may have at most.
        foreseen: files of the tree and ranges of them that are read ahead.
    """

    executable: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str
    mounts: list[KernelMount]
    host_name: str
    limits: Limits
    foreseen: dict[str, Spans]


class Sandbox:
    """The application's processes, from before the key to the exit status.

    Args:
        uid, gid: numbers that the program sees as its own.

    Attributes:
        memory: what the tmpfs mounts held when the program ended.

    Raises:
        SandboxError: the kernel does not permit what is needed; says what to enable.
    """

    def __init__(self, uid: int = 0, gid: int = 0) -> None:
        linux.adopt_orphans()
        sys.stdout.flush()
        sys.stderr.flush()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._program: int | None = None
        self.memory: list[MemoryUse] = []
        helper = fork_into(lambda: _enter_namespaces(self._control, theirs, uid, gid))
        theirs.close()
        try:
            self.fuse = self._receive_fuse()
        finally:
            os.waitpid(helper, 0)
        self._init = os.pidfd_open(self._receive_number())

    def _receive_fuse(self) -> int:
        message, ancillary, _, _ = self._control.recvmsg(4096, socket.CMSG_SPACE(64))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return int.from_bytes(data[:4], sys.byteorder)
        raise _unfit(message.decode() or "namespaces: the helper process died")

    def _receive_number(self) -> int:
        try:
            return int(_LENGTH.unpack(self._receive(_LENGTH.size))[0])
        except ConnectionError as error:
            raise SandboxError("the sandbox died before the program started") from error

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece, _, _, _ = self._control.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            if not piece:
                raise ConnectionError("the sandbox was killed")
            data += piece
        return data

    def start(self, plan: Plan) -> None:
        """Let the first process go on. The caller serves ``fuse`` from now on."""
        text = json.dumps(asdict(plan)).encode("ascii")
        self._control.sendall(_LENGTH.pack(len(text)) + text)

    def forward(self, number: int) -> None:
        """Send a signal to the program, if it runs already."""
        with suppress(BlockingIOError):
            self._learn_program(socket.MSG_DONTWAIT)
        if self._program is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._program, number)

    def _learn_program(self, flags: int = 0) -> None:
        """Take hold of the program by the credentials of its one message.

        Raises:
            ConnectionError: the sandbox was killed before.
            BlockingIOError: with MSG_DONTWAIT: the program does not run yet.
        """
        if self._program is not None:
            return
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        message, ancillary, _, _ = self._control.recvmsg(1, space, flags)
        if not message:
            raise ConnectionError("the sandbox was killed")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                # A process that ended meanwhile has no number any more; it needs no signals either.
                with suppress(ProcessLookupError):
                    self._program = os.pidfd_open(_CREDENTIALS.unpack(data)[0])

    def result(self, tell: Callable[[str], None]) -> int:
        """Return the program's exit code as a shell would, after the tree is gone.

        Args:
            tell: called with a sentence for each limit that the program reached.

        Raises:
            ProgramStartError: the program could not be started.
            SandboxError: what the kernel was to mount over the tree could not be mounted.
        """
        try:
            self._learn_program()
            kind, value = _STATUS.unpack(self._receive(_STATUS.size))
            while kind in (_TOLD, _MEMORY):
                message = self._receive(value).decode("ascii")
                if kind == _TOLD:
                    tell(message)
                else:
                    self.memory = [MemoryUse(*use) for use in json.loads(message)]
                kind, value = _STATUS.unpack(self._receive(_STATUS.size))
            if kind == _NOT_STARTED:
                message = self._receive(value).decode("utf-8", "replace")
                if message.startswith(_PREPARING):
                    raise SandboxError(message)
                raise ProgramStartError(message)
        except ConnectionError:
            return 128 + signal.SIGKILL
        return int(value)

    def close(self) -> None:
        """Kill what is left, and reap it."""
        signal.pidfd_send_signal(self._init, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self._init, os.WEXITED)
        for descriptor in (self._init, self._program, self.fuse):
            if descriptor is not None:
                os.close(descriptor)
        self._control.close()


def _unfit(message: str) -> SandboxError:
    step, _, reason = message.partition("\0")
    hints = {
        "user namespace": "as root: sysctl -w kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0 (whichever exists), and "
        "user.max_user_namespaces above 0",
        "/dev/fuse": "as root: modprobe fuse && chmod 666 /dev/fuse",
        "mount": "the container or security module forbids FUSE mounts; run outside of it",
    }
    return SandboxError(f"{step}: {reason}", hint=hints.get(step))


# From here on: code of the forked processes. Nothing may be imported after the root has changed.


def _enter_namespaces(
    parents: socket.socket, control: socket.socket, uid: int, gid: int
) -> NoReturn:
    """First forked process: namespaces and the tree's mount; forks process 1 and exits."""
    step = "user namespace"
    try:
        parents.close()
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
        init = os.fork()
        if init == 0:
            with never_returning():
                os.close(fuse)
                _run_as_process_one(control)
        socket.send_fds(control, [b"fuse"], [fuse])
        control.sendall(_LENGTH.pack(init))
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


def _run_as_process_one(control: socket.socket) -> NoReturn:
    """Process 1: mounts, starts the program, reaps, reports how it ended."""
    try:
        linux.set_dumpable(False)
        plan = _receive_plan(control)
        # Only now is the runtime the parent: the process that forked this one has been reaped.
        linux.die_with_parent(signal.SIGKILL)
        socket.sethostname(plan.host_name)
        hidden = os.open(f"{_STAGING}{HIDDEN}", os.O_PATH | os.O_CLOEXEC)
        for mount in plan.mounts:
            _mount(mount, f"/proc/self/fd/{hidden}")
        os.close(hidden)
        os.chdir(_STAGING)
        linux.pivot_root_here()
        ours, theirs = socket.socketpair()
        program = os.fork()
        if program == 0:
            with never_returning():
                ours.close()
                _become_program(control, theirs, plan)
        theirs.close()
        supervisor = Supervisor(_listener_from(ours), plan.limits)
        if plan.foreseen and os.fork() == 0:
            with never_returning():
                read_ahead(plan.foreseen.items())
        code = _reap_until(program, supervisor)
        for text in supervisor.reached.values():
            control.sendall(_STATUS.pack(_TOLD, len(text)) + text.encode("ascii"))
        held = json.dumps([_memory_use(each.path) for each in plan.mounts if each.kind == "tmpfs"])
        control.sendall(_STATUS.pack(_MEMORY, len(held)) + held.encode("ascii"))
    except OSError as error:
        control.sendall(b"!")
        _fail(control, f"{_PREPARING}: {error.filename or ''}: {error.strerror}")
    control.sendall(_STATUS.pack(_EXITED, code))
    os._exit(0)


def _memory_use(path: str) -> MemoryUse:
    """Ask a tmpfs mount what it holds; its root directory does not count."""
    held = os.statvfs(path)
    size = (held.f_blocks - held.f_bfree) * held.f_frsize
    return MemoryUse(path, held.f_files - held.f_ffree - 1, size)


def _receive_plan(control: socket.socket) -> Plan:
    (size,) = _LENGTH.unpack(_exactly(control, _LENGTH.size))
    fields = json.loads(_exactly(control, size))
    fields["mounts"] = [KernelMount(**mount) for mount in fields["mounts"]]
    fields["limits"] = Limits(**fields["limits"])
    return Plan(**fields)


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


def _reap_until(program: int, supervisor: Supervisor) -> int:
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


def _become_program(control: socket.socket, init: socket.socket, plan: Plan) -> NoReturn:
    """Process 2: without privileges, become the program.

    Args:
        control: the runtime, who is told why there is no program.
        init: process 1, who gets the descriptor on which calls wait for its answer.
        plan: what to become.
    """
    try:
        control.sendall(b"!")  # its credentials tell the runtime this process's number
        for number in (*FOR_THE_PROGRAM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        _keep_only_standard_streams()
        _enter(plan.directory)
        linux.drop_privileges()
        linux.leave_abstract_sockets_of_others()
        filter_of_calls = filter_program(plan.limits)
        listener = linux.install_filter(filter_of_calls, listener=plan.limits.is_watched)
        socket.send_fds(init, [b"!"], [] if listener is None else [listener])
        impose(plan.limits)
        os.execve(plan.executable, plan.arguments, plan.environment)
    except OSError as error:
        hint = "; sys.stack.size has to hold them" if error.errno == errno.E2BIG else ""
        name = error.filename or plan.executable
        _fail(control, f"{name}: cannot start: {error.strerror}{hint}")
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
            if descriptor > _LAST_STANDARD_STREAM:
                os.set_inheritable(descriptor, False)
            elif stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise ValueError(f"standard stream {descriptor} is a directory of the host")


def _fail(control: socket.socket, message: str) -> NoReturn:
    text = message.encode("utf-8", "surrogateescape")
    control.sendall(_STATUS.pack(_NOT_STARTED, len(text)) + text)
    os._exit(127)


def harden_this_process() -> None:
    """Prepare the serving process, after the program's processes were forked.

    Its memory holds keys, so it stays out of core dumps and debuggers. The modes that the kernel
    sends already carry the program's umask; ours must not be taken off them too.
    """
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.set_dumpable(False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
