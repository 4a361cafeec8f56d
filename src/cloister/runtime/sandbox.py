"""The application's side of the wall: namespaces, mounts, its first process.

Two processes are forked before any key exists in memory. The first enters new user, mount, PID,
IPC and UTS namespaces, opens ``/dev/fuse`` there (opened elsewhere, mount(2) refuses it), mounts
the tree and passes the descriptor back. The second is process 1 of the new PID namespace: told to,
it mounts what belongs to the kernel, makes the tree its root and forks process 2, which waits for
the plan and becomes the program without any privilege. When either side dies the kernel removes
every process and every mount of the other; nothing has a name on the host.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from cloister.errors import ProgramStartError, SandboxError
from cloister.runtime import linux
from cloister.runtime.forks import NO_MORE_PROCESSES, close_private, fork_into, keep_private
from cloister.runtime.inside import enter_namespaces
from cloister.runtime.plan import (
    CREDENTIALS,
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


class Sandbox:
    """The application's processes, from before the key to the exit status.

    Args:
        processors: tells the runtime when it has one to itself.
        uid, gid: numbers that the program sees as its own.

    Attributes:
        memory: what the tmpfs mounts held when the program ended.

    Raises:
        SandboxError: the kernel does not permit what is needed; says what to enable.
    """

    def __init__(self, processors: Processors, uid: int = 0, gid: int = 0) -> None:
        linux.adopt_orphans()
        sys.stdout.flush()
        sys.stderr.flush()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        keep_private(self._control)  # the plan comes through it
        self._program: int | None = None
        self._early: list[int] = []
        self.memory: list[MemoryUse] = []
        helper = fork_into(lambda: enter_namespaces(theirs, processors, uid, gid))
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
            return int(LENGTH.unpack(self._receive(LENGTH.size))[0])
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

    def prepare(self, stage: Stage) -> None:
        """Let the first process mount and fetch ahead; see :meth:`await_ready`.

        The caller serves ``fuse`` from now on.
        """
        self._tell(stage)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is news from inside."""
        return self._control.fileno()

    def await_ready(self) -> None:
        """Wait until the tree is mounted and nothing inside needs it to take the plan.

        Raises:
            SandboxError: what the kernel was to mount over the tree could not be mounted.
        """
        try:
            if self._receive(len(READY)) == READY:
                return
            _, size = STATUS.unpack(self._receive(STATUS.size))
            raise SandboxError(self._receive(size).decode("utf-8", "replace"))
        except ConnectionError as error:
            raise SandboxError("the sandbox died before the program started") from error

    def start(self, plan: Plan) -> None:
        """Start the program; from now on it answers signals."""
        self._tell(plan)
        with suppress(ConnectionError):  # found out by waiting for the result, too
            self._learn_program()

    def _tell(self, what: Stage | Plan) -> None:
        text = json.dumps(what, default=vars).encode("ascii")
        # Whoever has died meanwhile, or why, is found out by waiting for an answer.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(LENGTH.pack(len(text)) + text)

    def has_program(self) -> bool:
        """Tell whether the program answers signals by now."""
        return self._program is not None

    def forward(self, number: int) -> None:
        """Send a signal to the program, as soon as it answers signals."""
        if self._program is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._program, number)

    def _learn_program(self) -> None:
        """Take hold of the program by the credentials of its one message.

        If it was killed before it could send that, process 1 tells how: that message is next.

        Raises:
            ConnectionError: the sandbox was killed before.
        """
        if self._control.recv(len(STARTING), socket.MSG_PEEK) not in (STARTING, b""):
            return
        message, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
        if not message:
            raise ConnectionError("the sandbox was killed")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                # A process that ended meanwhile has no number any more; it needs no signals either.
                with suppress(ProcessLookupError):
                    self._program = os.pidfd_open(CREDENTIALS.unpack(data)[0])
        early, self._early = self._early, []
        for number in early:
            self.forward(number)

    def result(self, tell: Callable[[str], None]) -> int:
        """Return the program's exit code as a shell would, after the tree is gone.

        Args:
            tell: called with a sentence for each limit that the program reached.

        Raises:
            ProgramStartError: the program could not be started.
            SandboxError: what the kernel was to mount over the tree could not be mounted.
        """
        try:
            kind, value = STATUS.unpack(self._receive(STATUS.size))
            while kind in (TOLD, MEMORY):
                message = self._receive(value).decode("ascii")
                if kind == TOLD:
                    tell(message)
                else:
                    self.memory = [MemoryUse(*use) for use in json.loads(message)]
                kind, value = STATUS.unpack(self._receive(STATUS.size))
            if kind == NOT_STARTED:
                message = self._receive(value).decode("utf-8", "replace")
                if message.startswith(PREPARING):
                    raise SandboxError(message)
                what, _, hint = message.partition("\0")
                raise ProgramStartError(what, hint=hint or None)
        except ConnectionError:
            return 128 + signal.SIGKILL
        return int(value)

    def close(self) -> None:
        """Kill what is left.

        With the first process the kernel ends all others and takes the tree down. Giving back what
        it kept of files takes it 50 ms for 600 MB; nobody waits for that.
        """
        signal.pidfd_send_signal(self._init, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self._init, os.WEXITED | os.WNOHANG)
        for descriptor in (self._init, self._program, self.fuse):
            if descriptor is not None:
                os.close(descriptor)
        close_private(self._control)


def _unfit(message: str) -> SandboxError:
    step, _, reason = message.partition("\0")
    hints = {
        "user namespace": "as root: sysctl -w kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0 (whichever exists), and "
        "user.max_user_namespaces above 0",
        "/dev/fuse": "as root: modprobe fuse && chmod 666 /dev/fuse",
        "fork": NO_MORE_PROCESSES,
        "mount": "the container or security module forbids FUSE mounts; run outside of it",
    }
    return SandboxError(f"{step}: {reason}", hint=hints.get(step))


def harden_this_process() -> None:
    """Prepare the serving process, after the program's processes were forked.

    The modes that the kernel sends already carry the program's umask; ours must not be taken off
    them too.
    """
    os.umask(0)
    linux.keep_memory_private()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
