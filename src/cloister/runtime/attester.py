"""The process that holds the enclave: it starts the platform, and speaks with key servers.

Starting an enclave and being attested takes most of the time before a program starts, and none of
it needs the program's files. So it is done in a process of its own, beside the one that prepares
the tree and fetches files ahead. There it stays until the program has ended, and answers what
``/dev/attestation`` is asked. Both processes belong to the runtime and trust each other.

A message is a pickled value and a number of secrets. Keys and released secrets travel beside the
value, in buffers that are wiped after use.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from cloister.errors import CloisterError, PlatformError
from cloister.platforms.base import Enclave, SealingPolicy
from cloister.runtime import linux
from cloister.runtime.forks import close_private, fork_into, keep_private

if TYPE_CHECKING:
    from cloister.provision.request import Provisioned, ProvisioningRequest

_HEAD = struct.Struct("=II")  # bytes of the pickled value, number of secrets
_SIZE = struct.Struct("=I")
_CLIENT = "cloister.provision.client"


class SealingRequest(NamedTuple):
    """A sealing key that is asked for; a mask of None is the usual one."""

    policy: SealingPolicy
    flags_mask: int | None = None
    xfrm_mask: int | None = None
    misc_mask: int | None = None


class Started(NamedTuple):
    """An enclave that has started.

    Attributes:
        enclave: the enclave.
        digest: of the signed files that it was started from.
        description: one line on its platform.
        sealing: the keys that will be asked for.
        provisions: whether secrets may be asked for.
    """

    enclave: Enclave
    digest: bytes
    description: str
    sealing: Sequence[SealingRequest] = ()
    provisions: bool = False


class _Facts(NamedTuple):
    """What never changes of a started enclave.

    Sealing keys travel as secrets: ``sealing`` holds None in their places, and errors.
    """

    digest: bytes
    description: str
    simulated: bool
    mrenclave: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    debug: bool
    has_event_log: bool
    sealing: dict[SealingRequest, CloisterError | None]


class _Channel:
    """Messages over one end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, value: object, secrets: Sequence[bytearray] = ()) -> None:
        """Send a value, and secrets beside it, which stay the caller's to wipe."""
        text = pickle.dumps(value)
        self.end.sendall(_HEAD.pack(len(text), len(secrets)) + text)
        for secret in secrets:
            self.end.sendall(_SIZE.pack(len(secret)))
            self.end.sendall(secret)

    def receive(self) -> tuple[Any, list[bytearray]]:
        """Wait for a message.

        Raises:
            EOFError: the other process has ended.
        """
        size, count = _HEAD.unpack(self._exactly(_HEAD.size))
        value = pickle.loads(self._exactly(size))  # noqa: S301  (written by this very program)
        secrets = [self._exactly(*_SIZE.unpack(self._exactly(_SIZE.size))) for _ in range(count)]
        return value, secrets

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        room = memoryview(data)
        while room:
            count = self.end.recv_into(room)
            if count == 0:
                raise EOFError
            room = room[count:]
        return data


class Attester:
    """Starts an enclave in a process of its own, which is forked at once.

    Args:
        start: starts the enclave, there.
    """

    def __init__(self, start: Callable[[], Started]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        keep_private(ours)  # through it one could ask for keys
        self._child = fork_into(lambda: _hold(_Channel(theirs), start))
        theirs.close()
        self._channel = _Channel(ours)

    def enclave(self) -> HeldEnclave:
        """Wait for the enclave to start.

        Raises:
            CloisterError: what starting it raised.
        """
        return HeldEnclave(self._channel, *_answer(self._channel))

    def close(self) -> None:
        """End the process, and with it the enclave; nobody waits for that."""
        close_private(self._channel.end)
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, os.WNOHANG)


class HeldEnclave:
    """The enclave that the other process holds; see :class:`cloister.platforms.base.Enclave`.

    Attributes:
        digest: of the signed files that it was started from.
        description: one line on its platform.
    """

    def __init__(self, channel: _Channel, facts: _Facts, keys: list[bytearray]) -> None:
        self._channel = channel
        self._facts = facts
        waiting = iter(keys)
        self._sealing = {
            request: next(waiting) if error is None else error
            for request, error in facts.sealing.items()
        }
        self._asked: Sequence[ProvisioningRequest] = ()
        self.digest = facts.digest
        self.description = facts.description

    @property
    def simulated(self) -> bool:
        """Whether no hardware protects this enclave."""
        return self._facts.simulated

    @property
    def mrenclave(self) -> bytes:
        """Measurement, 32 bytes."""
        return self._facts.mrenclave

    @property
    def mrsigner(self) -> bytes:
        """SHA-256 of the signer's public modulus, 32 bytes."""
        return self._facts.mrsigner

    @property
    def isv_prod_id(self) -> int:
        """Product number that the signer gave (16 bits)."""
        return self._facts.isv_prod_id

    @property
    def isv_svn(self) -> int:
        """Security version that the signer gave (16 bits)."""
        return self._facts.isv_svn

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory may be read from outside."""
        return self._facts.debug

    @property
    def event_log(self) -> bytes:
        """What must lie beside a quote now for verifiers to read it; empty where nothing must."""
        return bytes(self._call("event_log")[0]) if self._facts.has_event_log else b""

    def target_info(self) -> bytes:
        """Return this enclave's own TARGETINFO (512 bytes)."""
        return bytes(self._call("target_info")[0])

    def report(self, target_info: bytes, report_data: bytes) -> bytes:
        """Return a REPORT (432 bytes) that the enclave ``target_info`` can check."""
        return bytes(self._call("report", target_info, report_data)[0])

    def verify_report(self, report: bytes) -> None:
        """Check that ``report`` was made on this processor for this enclave.

        Raises:
            ReportMacError: it was not.
        """
        self._call("verify_report", report)

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote with these 64 bytes."""
        return bytes(self._call("quote", report_data)[0])

    def sealing_key(
        self,
        policy: SealingPolicy,
        *,
        flags_mask: int | None = None,
        xfrm_mask: int | None = None,
        misc_mask: int | None = None,
    ) -> bytes:
        """Return the 16-byte sealing key of the policy; None takes the usual mask.

        Raises:
            UnsupportedByPlatformError: the platform has no sealing keys.
        """
        request = SealingRequest(policy, flags_mask, xfrm_mask, misc_mask)
        if request not in self._sealing:
            error, keys = self._call("sealing_key", *request)
            self._sealing[request] = keys[0] if error is None else error
        key = self._sealing[request]
        if isinstance(key, CloisterError):
            raise key
        return bytes(key)

    def close(self) -> None:
        """Wipe its keys; the process ends with its :class:`Attester`."""
        for key in self._sealing.values():
            if isinstance(key, bytearray):
                key[:] = bytes(len(key))
        self._sealing.clear()

    def ask_for(self, requests: Sequence[ProvisioningRequest]) -> None:
        """Begin to fetch secrets from key servers; :meth:`provisioned` returns them."""
        self._asked = requests
        _ask(self._channel, "fetch", tuple(requests))

    def fileno(self) -> int:
        """Return the descriptor that is readable when the secrets have arrived, or a failure."""
        return self._channel.end.fileno()

    def provisioned(self) -> Iterator[Provisioned]:
        """Wait for the secrets that were asked for, and yield them.

        Raises:
            CloisterError: a key server did not release the next one.
        """
        from cloister.provision.request import interpret

        (released, failure), secrets = _answer(self._channel)
        asked = self._asked[: len(released)]
        for (server, certificate), secret, request in zip(released, secrets, asked, strict=True):
            yield interpret(server, certificate, secret, request)
        if failure is not None:
            failure.rise()

    def _call(self, name: str, *arguments: object) -> tuple[Any, list[bytearray]]:
        _ask(self._channel, name, arguments)
        return _answer(self._channel)


class _ThereError(Exception):
    """Where the other process raised something, for those who want to see tracebacks."""


class _Failure(NamedTuple):
    """What the other process raised."""

    error: CloisterError | OSError
    trace: str

    def rise(self) -> NoReturn:
        """Raise it here."""
        raise self.error from _ThereError(self.trace)


_DIED = "the process that holds the enclave has died"


def _ask(channel: _Channel, name: str, arguments: tuple[Any, ...]) -> None:
    try:
        channel.send((name, arguments))
    except ConnectionError as error:
        raise PlatformError(_DIED) from error


def _answer(channel: _Channel) -> tuple[Any, list[bytearray]]:
    """Wait for an answer; raise what the other process raised."""
    try:
        value, secrets = channel.receive()
    except (EOFError, ConnectionError) as error:
        raise PlatformError(_DIED) from error
    if isinstance(value, _Failure):
        value.rise()
    return value, secrets


# --- In the process that holds the enclave -------------------------------------------------------


def _hold(channel: _Channel, start: Callable[[], Started]) -> NoReturn:
    """Start the enclave and answer until the runtime ends or closes the channel."""
    # Whoever sends signals to all processes of a job means the program.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    linux.keep_memory_private()
    try:
        started = start()
        _send_facts(channel, started)
    except Exception as error:
        channel.send(_failure(error))
        os._exit(1)
    enclave = started.enclave
    if started.provisions:
        importlib.import_module(_CLIENT)
    while True:
        try:
            (name, arguments), _ = channel.receive()
        except EOFError:
            break
        try:
            if name == "fetch":
                _send_secrets(channel, enclave, arguments)
            elif name == "sealing_key":
                _send_key(channel, _sealing_key(enclave, SealingRequest(*arguments)))
            else:
                wanted = getattr(enclave, name)
                channel.send(wanted(*arguments) if callable(wanted) else wanted)
        except Exception as error:
            channel.send(_failure(error))
    enclave.close()
    os._exit(0)


def _send_facts(channel: _Channel, started: Started) -> None:
    enclave = started.enclave
    keys = {request: _sealing_key(enclave, request) for request in started.sealing}
    errors = {r: key if isinstance(key, CloisterError) else None for r, key in keys.items()}
    facts = _Facts(
        digest=started.digest,
        description=started.description,
        simulated=enclave.simulated,
        mrenclave=enclave.mrenclave,
        mrsigner=enclave.mrsigner,
        isv_prod_id=enclave.isv_prod_id,
        isv_svn=enclave.isv_svn,
        debug=enclave.debug,
        has_event_log=bool(enclave.event_log),
        sealing=errors,
    )
    channel.send(facts, [key for key in keys.values() if isinstance(key, bytearray)])


def _send_key(channel: _Channel, key: bytearray | CloisterError) -> None:
    if isinstance(key, CloisterError):
        channel.send(key)
    else:
        channel.send(None, [key])


def _sealing_key(enclave: Enclave, request: SealingRequest) -> bytearray | CloisterError:
    policy, flags, xfrm, misc = request
    try:
        key = enclave.sealing_key(policy, flags_mask=flags, xfrm_mask=xfrm, misc_mask=misc)
    except CloisterError as error:
        return error
    return bytearray(key)


def _send_secrets(
    channel: _Channel, enclave: Enclave, requests: Sequence[ProvisioningRequest]
) -> None:
    """Fetch every secret; each gets a certificate with a key of its own."""
    from cloister.provision.client import fetch_secret

    released: list[Provisioned] = []
    failure: _Failure | None = None
    try:
        for request in requests:
            try:
                released.append(fetch_secret(enclave, request))
            except Exception as error:
                failure = _failure(error)
                break
        public = [(one.server, one.certificate) for one in released]
        channel.send((public, failure), [one.secret for one in released])
    finally:
        for one in released:
            one.wipe()


def _failure(error: Exception) -> _Failure:
    """Return an error that can be sent; a defect of ours is told by its name."""
    if not isinstance(error, CloisterError | OSError):
        told = PlatformError(f"internal error in the process that holds the enclave: {error!r}")
        return _Failure(told, traceback.format_exc())
    return _Failure(error, traceback.format_exc())
