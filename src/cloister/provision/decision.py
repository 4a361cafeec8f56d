"""Who may have which secret: the decision about one client, and its record.

Pure: certificates come in as bytes, the time with the authenticator, and decisions go out as data.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Sequence
from typing import Any

from cloister.attestation.pcs import WouldAskError
from cloister.attestation.policy import Policy
from cloister.attestation.trust import Authenticator
from cloister.attestation.verdict import Check, Verdict
from cloister.attestation.verify import Authentication
from cloister.errors import AmbiguousSecretError, InputError
from cloister.ratls.verify import authenticate_certificate
from cloister.text import printable


@dataclasses.dataclass(frozen=True)
class Secret:
    """A secret and the enclaves that may have it.

    Attributes:
        name: what logs call it.
        value: the bytes that are sent; never logged.
        policy: which enclaves may have it.
    """

    name: str
    value: bytearray = dataclasses.field(repr=False)
    policy: Policy

    def wipe(self) -> None:
        """Overwrite the value with zeros."""
        self.value[:] = bytes(len(self.value))


class Outcome(enum.Enum):
    """What became of a client."""

    RELEASED = "released"
    REFUSED = "refused"
    DROPPED = "dropped"
    """It left, or was too slow, or failed at TLS."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about one client, and why; never contains the secret.

    Attributes:
        time: when.
        peer: the client's address.
        outcome: what became of it.
        secret: name of the released secret, or None.
        reason: one line.
        check: the check that decided a refusal, e.g. ``MRENCLAVE``, or None.
        identity: the enclave's measurement, or None if the quote was not genuine.
        tcb_status: the platform's, or None likewise.
        simulated: whether the root is a simulated one; None if no trusted root was found.
    """

    time: datetime.datetime
    peer: str
    outcome: Outcome
    secret: str | None
    reason: str
    check: str | None = None
    identity: str | None = None
    tcb_status: str | None = None
    simulated: bool | None = None

    def to_line(self) -> str:
        """Return the decision as one line for a log."""
        words = {
            Outcome.RELEASED: f"RELEASED {self.secret} to",
            Outcome.REFUSED: "REFUSED",
            Outcome.DROPPED: "broken off with" if self.identity else "no exchange with",
        }
        time = self.time.strftime("%Y-%m-%dT%H:%M:%SZ")
        parts = [time, words[self.outcome], f"{self.peer}:", self.reason]
        if self.identity:
            parts.append(f"[{self.identity}, TCB {self.tcb_status}]")
        if self.simulated:
            parts.append("SIMULATED")
        return printable(" ".join(parts))

    def to_dict(self) -> dict[str, Any]:
        """Return the decision for JSON."""
        return vars(self) | {"time": self.time.isoformat(), "outcome": self.outcome.value}


@dataclasses.dataclass(frozen=True)
class ClientJudgement:
    """The verdict on a client's certificate: the secret that it may have, or none."""

    secret: Secret | None
    verdict: Verdict

    @property
    def accepted(self) -> bool:
        """Whether there is a secret for this client."""
        return self.secret is not None and self.verdict.accepted

    @property
    def reason(self) -> str:
        """Why, in one line."""
        if self.accepted:
            return "every check passed"
        return self.verdict.failures[0].as_error().message

    @property
    def failed_check(self) -> str | None:
        """The name of the check that decided a refusal, or None."""
        return None if self.accepted else self.verdict.failures[0].leaf.name


class ClientJudge:
    """Judges certificates against the policies of several secrets.

    The protocol names no secret: the enclave's measurement is the name. So exactly one policy
    must accept a client; where several do, it gets nothing, since any choice might be the wrong
    key.

    Args:
        secrets: what can be released; see :meth:`replace`.
        authenticator: finds out whether quotes are genuine.
    """

    def __init__(self, secrets: Sequence[Secret], authenticator: Authenticator) -> None:
        self._secrets = _named_once(secrets)
        self._authenticator = authenticator

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What can be released."""
        return self._secrets

    def replace(self, secrets: Sequence[Secret]) -> None:
        """Release these secrets from now on; clients that were judged before keep theirs."""
        self._secrets = _named_once(secrets)

    def __call__(self, certificate: bytes) -> ClientJudgement:
        """Judge a certificate in DER; may take as long as a service takes for its collateral."""
        return self._judge(certificate, at_once=False)

    def at_once(self, certificate: bytes) -> ClientJudgement | None:
        """Judge a certificate in DER; None if a service would have to be asked for collateral."""
        try:
            return self._judge(certificate, at_once=True)
        except WouldAskError:
            return None

    def _judge(self, certificate: bytes, *, at_once: bool) -> ClientJudgement:
        authentication = authenticate_certificate(certificate, self._authenticator, at_once=at_once)
        secrets = self._secrets  # those of now: the other may have taken its time
        verdicts = [(secret, authentication.judge(secret.policy)) for secret in secrets]
        accepted = [(secret, verdict) for secret, verdict in verdicts if verdict.accepted]
        if len(accepted) == 1:
            return ClientJudgement(*accepted[0])
        if accepted:
            names = ", ".join(secret.name for secret, _ in accepted)
            return ClientJudgement(None, _ambiguous(accepted[0][1], names))
        if not verdicts:
            return ClientJudgement(None, _nothing_to_release(authentication))
        return ClientJudgement(None, verdicts[0][1] if len(verdicts) == 1 else _joined(verdicts))


def _ambiguous(verdict: Verdict, names: str) -> Verdict:
    check = Check("secret", False, f"the policies of {names}", "one policy", AmbiguousSecretError)
    return dataclasses.replace(verdict, checks=(*verdict.checks, check))


def _nothing_to_release(authentication: Authentication) -> Verdict:
    check = Check("secret", False, "no secret in the store", "one that this enclave may have")
    return Verdict(
        (*authentication.checks, check), authentication.evidence, authentication.simulated
    )


def _joined(verdicts: list[tuple[Secret, Verdict]]) -> Verdict:
    """Return one verdict in which each secret's policy has its reason."""
    first = verdicts[0][1]
    if first.evidence is None or any(not check.passed for check in first.checks[:-1]):
        return first  # not genuine, or not for production: the same for every policy
    reasons = "; ".join(
        f"{secret.name}: {verdict.failures[0].as_error().message}" for secret, verdict in verdicts
    )
    check = Check("secret", False, reasons, "one policy to accept", first.failures[0].error)
    return dataclasses.replace(first, checks=(*first.checks[:-1], check))


def _named_once(secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    names = [secret.name for secret in secrets]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"secret {name}: named twice")
    return tuple(secrets)
