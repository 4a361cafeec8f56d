"""One client of a key server, from its first byte to the last one of its secret.

What a client waits for is a step; an :class:`Exchange` yields one after the other and is resumed
when it is there. Nothing here blocks, so that one thread serves all clients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import selectors
import socket
from collections.abc import Callable, Generator, Iterator
from typing import Any

from OpenSSL import SSL

from cloister.errors import AuditError, CloisterError, ProtocolError, RaTlsError, RefusedError
from cloister.provision import protocol
from cloister.provision.decision import ClientJudgement, Decision, Outcome
from cloister.provision.limits import Limits
from cloister.ratls.deadline import Deadline
from cloister.ratls.server import Channel, RaTlsServer

_NO_CERTIFICATE = "peer did not return a certificate"
_SILENT = "not one byte"


@dataclasses.dataclass(frozen=True, eq=False)
class ToJudge:
    """A certificate that cannot be judged at once; answered with the judgement on it."""

    certificate: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class ToRecord:
    """A decision that must be recorded before anything else; answered with :data:`RECORDED`."""

    decision: Decision


READY = object()
"""Answers a number: the socket is ready."""
RECORDED = object()
"""Answers :class:`ToRecord`: the decision is recorded; nothing else says so."""

Step = int | ToJudge | ToRecord
"""What a client waits for; a number is what its socket is waited for (``selectors.EVENT_READ``)."""
Steps = Generator[Step, Any, None]


class Releases:
    """Counts the secrets that were sent in full, and lets no more be sent than are wanted.

    Args:
        wanted: how many; None sets no limit.
    """

    def __init__(self, wanted: int | None = None) -> None:
        self._wanted = wanted
        self._reserved = 0
        self.made = 0

    @property
    def enough(self) -> bool:
        """Whether as many were sent as are wanted."""
        return self._wanted is not None and self.made >= self._wanted

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Count a release before it is made; leaving without an exception says that it was.

        Raises:
            RaTlsError: all that are wanted are made or reserved.
        """
        if self._wanted is not None and self.made + self._reserved >= self._wanted:
            raise RaTlsError("as many secrets as are to be released are taken")
        self._reserved += 1
        try:
            yield
            self.made += 1
        finally:
            self._reserved -= 1


@dataclasses.dataclass(frozen=True)
class Rules:
    """What all exchanges of a server have in common.

    Attributes:
        tls: makes the channels, and judges what can be judged at once.
        limits: how long a client may take.
        clock: gives the present time (aware).
        releases: counts them.
    """

    tls: RaTlsServer[ClientJudgement]
    limits: Limits
    clock: Callable[[], datetime.datetime]
    releases: Releases


class Exchange:
    """What happens with one client.

    Args:
        connected: its connection; :meth:`close` closes it.
        peer: its address, for records.
        rules: those of the server.

    Attributes:
        socket: the connection.
        deadline: when it has to be resumed at the latest; changes between steps.
        step: what it waits for; None before the first and after the last.
        refusal: after the last, the decision that is still to be recorded, if it ended badly.
    """

    def __init__(self, connected: socket.socket, peer: str, rules: Rules) -> None:
        self.socket = connected
        limits = rules.limits
        self.deadline = Deadline(limits.hello_timeout, _SILENT)
        self._crowded_deadline = Deadline(limits.crowded_hello_timeout, _SILENT)
        self.step: Step | None = None
        self.refusal: Decision | None = None
        self._peer = peer
        self._rules = rules
        self._channel: Channel[ClientJudgement] | None = None
        self._steps = self._run()

    def resume(self, answer: object = None) -> Step | None:
        """Go on, with the answer to the step; return the next one, or None after the last."""
        return self._go_on(lambda: self._steps.send(answer))

    def fail(self, error: Exception) -> Step | None:
        """Go on, but the step failed."""
        return self._go_on(lambda: self._steps.throw(error))

    def hurry(self) -> None:
        """Give a client that has sent nothing yet no more time than where others wait."""
        if self._channel is None:
            self.deadline = self._crowded_deadline

    def close(self) -> None:
        """Close the connection, with TLS's farewell if there was TLS."""
        self._steps.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None  # what TLS keeps is large, and the list of deadlines keeps this
        self.socket.close()

    def _go_on(self, go: Callable[[], Step]) -> Step | None:
        try:
            self.step = go()
        except StopIteration:
            self.step = None
        return self.step

    def _run(self) -> Steps:
        try:
            if (yield selectors.EVENT_READ) is not READY:
                self.deadline.remaining()
            self.deadline = Deadline(self._rules.limits.client_timeout)
            self._channel = self._rules.tls.channel(self.socket, self.deadline)
            yield from self._serve(self._channel)
        except AuditError:
            return  # that it cannot be recorded is not recorded, but the recorder has told it
        except Exception as error:
            # Whatever a client makes fail here ends its own connection and nothing else.
            self.refusal = self._failure(error)

    def _serve(self, channel: Channel[ClientJudgement]) -> Steps:
        judgement = yield from channel.handshake()
        if judgement is None:
            judgement = yield ToJudge(channel.certificate)
            self.deadline.remaining()
            channel.judge(judgement)
        if judgement.secret is None or not judgement.accepted:
            raise RaTlsError("the client was not accepted")
        secret = judgement.secret
        protocol.check_request((yield from channel.read_exactly(len(protocol.REQUEST))))
        with self._rules.releases.reserved():
            if (yield ToRecord(self._decision(judgement, Outcome.RELEASED))) is not RECORDED:
                raise RaTlsError("the decision was not recorded")
            yield from channel.write(protocol.encode_head(len(secret.value)))
            yield from channel.write(secret.value)

    def _failure(self, error: Exception) -> Decision:
        judgement = self._channel.judgement if self._channel is not None else None
        reason = _reason(error)
        # Whoever leaves, or is too slow, was refused nothing.
        ours = _NO_CERTIFICATE in reason or isinstance(error, (RefusedError, ProtocolError))
        outcome = Outcome.REFUSED if ours else Outcome.DROPPED
        if judgement is None:
            return Decision(self._rules.clock(), self._peer, outcome, None, reason)
        if not judgement.accepted:
            return self._decision(judgement, Outcome.REFUSED)
        return dataclasses.replace(self._decision(judgement, outcome), reason=reason)

    def _decision(self, judgement: ClientJudgement, outcome: Outcome) -> Decision:
        evidence = judgement.verdict.evidence
        released = judgement.secret if outcome is Outcome.RELEASED else None
        return Decision(
            time=self._rules.clock(),
            peer=self._peer,
            outcome=outcome,
            secret=released.name if released else None,
            reason=judgement.reason,
            check=judgement.failed_check,
            identity=evidence.identity if evidence else None,
            tcb_status=evidence.tcb_status if evidence else None,
            simulated=judgement.verdict.simulated,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, CloisterError):
        return error.message
    if isinstance(error, SSL.SysCallError):
        return "the client closed the connection"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args else []
        words = [str(item[2]) for item in details if len(item) > 2]
        return f"TLS failed ({', '.join(words) or 'unknown cause'})"
    if isinstance(error, (OSError, EOFError)):
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or str(error) or type(error).__name__
    return f"internal error ({type(error).__name__})"
