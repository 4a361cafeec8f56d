"""The process that holds the enclave: it starts the platform, and speaks with key servers.

Starting an enclave and being attested takes most of the time before a program starts, and none of
it needs the program's files. So it is done in a process of its own, beside the one that prepares
the tree and fetches files ahead. There it stays until the program has ended, and answers what
``/dev/attestation`` is asked. Both processes belong to the runtime and trust each other.

A message is a pickled value and a number of secrets. Secrets travel beside the value, in buffers
that are wiped after use.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from cloister.errors import CloisterError, PlatformError
from cloister.platforms.base import Enclave, SealingPolicy
from cloister.runtime import linux
from cloister.runtime.forks import fork_into

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
    """What never changes of a started enclave."""

    digest: bytes
    description: str
    simulated: bool
    mrenclave: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    debug: bool
    event_log: bytes
    sealing: dict[SealingRequest, bytes | CloisterError]


class _Channel:
    """Messages over one end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, value: object, secrets: Sequence[bytearray] = ()) -> None:
        """Send a value, and secrets beside it."""
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

        def hold() -> None:
            ours.close()
            _hold(_Channel(theirs), start)

        self._child = fork_into(hold)
        theirs.close()
        self._channel = _Channel(ours)

    def enclave(self) -> HeldEnclave:
        """Wait for the enclave to start.

        Raises:
            CloisterError: what starting it raised.
        """
        return HeldEnclave(self._channel, _answer(self._channel)[0])

    def close(self) -> None:
        """End the process, and with it the enclave, whatever it waits for."""
        self._channel.end.close()
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


class HeldEnclave:
    """The enclave that the other process holds; see :class:`cloister.platforms.base.Enclave`.

    Attributes:
        digest: of the signed files that it was started from.
        description: one line on its platform.
    """

    def __init__(self, channel: _Channel, facts: _Facts) -> None:
        self._channel = channel
        self._facts = facts
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
        """What must lie beside a quote for verifiers to read it; empty where nothing must."""
        return self._facts.event_log

    def target_info(self) -> bytes:
        """Return this enclave's own TARGETINFO (512 bytes)."""
        return bytes(self._call("target_info"))

    def report(self, target_info: bytes, report_data: bytes) -> bytes:
        """Return a REPORT (432 bytes) that the enclave ``target_info`` can check."""
        return bytes(self._call("report", target_info, report_data))

    def verify_report(self, report: bytes) -> None:
        """Check that ``report`` was made on this processor for this enclave.

        Raises:
            ReportMacError: it was not.
        """
        self._call("verify_report", report)

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote with these 64 bytes."""
        return bytes(self._call("quote", report_data))

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
        if request not in self._facts.sealing:
            self._facts.sealing[request] = self._call("sealing_key", *request)
        key = self._facts.sealing[request]
        if isinstance(key, CloisterError):
            raise key
        return key

    def close(self) -> None:
        """Forget its keys; the process ends with its :class:`Attester`."""
        self._facts.sealing.clear()

    def ask_for(self, requests: Sequence[ProvisioningRequest]) -> None:
        """Begin to fetch secrets from key servers; :meth:`provisioned` returns them."""
        _ask(self._channel, "fetch", tuple(requests))

    def fileno(self) -> int:
        """Return the descriptor that is readable when the secrets have arrived, or a failure."""
        return self._channel.end.fileno()

    def provisioned(self) -> Iterator[Provisioned]:
        """Wait for the secrets that were asked for, and yield them.

        Raises:
            CloisterError: a key server did not release the next one.
        """
        (released, failure), secrets = _answer(self._channel)
        waiting = iter(secrets)
        for one in released:
            key = None if one.key is None else next(waiting)
            yield dataclasses.replace(one, secret=next(waiting), key=key)
        if failure is not None:
            raise failure

    def _call(self, name: str, *arguments: object) -> Any:
        _ask(self._channel, name, arguments)
        return _answer(self._channel)[0]


class _Failure(NamedTuple):
    """What the other process raised."""

    error: CloisterError


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
        raise value.error
    return value, secrets


# --- In the process that holds the enclave -------------------------------------------------------


def _hold(channel: _Channel, start: Callable[[], Started]) -> NoReturn:
    """Start the enclave and answer until the runtime ends or closes the channel."""
    linux.die_with_parent(signal.SIGKILL)
    linux.keep_memory_private()
    try:
        started = start()
        channel.send(_facts(started))
    except Exception as error:
        channel.send(_Failure(_told(error)))
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
            else:
                channel.send(_call(enclave, name, arguments))
        except Exception as error:
            channel.send(_Failure(_told(error)))
    enclave.close()
    os._exit(0)


def _facts(started: Started) -> _Facts:
    enclave = started.enclave
    return _Facts(
        digest=started.digest,
        description=started.description,
        simulated=enclave.simulated,
        mrenclave=enclave.mrenclave,
        mrsigner=enclave.mrsigner,
        isv_prod_id=enclave.isv_prod_id,
        isv_svn=enclave.isv_svn,
        debug=enclave.debug,
        event_log=enclave.event_log,
        sealing={request: _sealing_key(enclave, request) for request in started.sealing},
    )


def _call(enclave: Enclave, name: str, arguments: tuple[Any, ...]) -> object:
    if name == "sealing_key":
        return _sealing_key(enclave, SealingRequest(*arguments))
    return getattr(enclave, name)(*arguments)


def _sealing_key(enclave: Enclave, request: SealingRequest) -> bytes | CloisterError:
    policy, flags, xfrm, misc = request
    try:
        return enclave.sealing_key(policy, flags_mask=flags, xfrm_mask=xfrm, misc_mask=misc)
    except CloisterError as error:
        return error


def _send_secrets(
    channel: _Channel, enclave: Enclave, requests: Sequence[ProvisioningRequest]
) -> None:
    """Fetch every secret; each gets a certificate with a key of its own."""
    from cloister.provision.client import fetch_secret

    released: list[Provisioned] = []
    failure: CloisterError | None = None
    try:
        released.extend(fetch_secret(enclave, request) for request in requests)
    except CloisterError as error:
        failure = error
    bare = [
        dataclasses.replace(one, secret=bytearray(), key=None if one.key is None else bytearray())
        for one in released
    ]
    secrets = [each for one in released for each in (one.key, one.secret) if each is not None]
    channel.send((bare, failure), secrets)
    for one in released:
        one.wipe()


def _told(error: Exception) -> CloisterError:
    """Return an error that can be sent; a defect of ours is told by its name."""
    if isinstance(error, CloisterError):
        return error
    return PlatformError(f"internal error in the process that holds the enclave: {error!r}")
