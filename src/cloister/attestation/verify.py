"""The owner's verdict on a quote: a pure function of quote, collateral, roots, time and policy.

The order of the work:

1. take the quote apart; nothing may be missing or left over;
2. find the trusted root that its certificates lead to, and check that root's own validity;
3. let dcap-qvl verify every signature, revocation list, date and TCB level up to that root
   (Intel SGX ECDSA QuoteLibReference, and the PCS API's rules for TCB levels);
4. check what that library leaves unchecked: each certificate that the quote carries, the QE's own
   status, all of :mod:`cloister.attestation.supplement`, and the attributes that a production
   enclave must have;
5. ask the policy whether this genuine enclave is the expected one.

A failure in 1 to 3 ends the work, since nothing after it would mean anything.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cloister.attestation import dcap
from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral
from cloister.attestation.evidence import Evidence
from cloister.attestation.expiry import parse_time
from cloister.attestation.policy import Policy, completed
from cloister.attestation.status import REVOKED, joined
from cloister.attestation.supplement import SUPPLEMENTS, Verified
from cloister.attestation.verdict import Check, Verdict
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    DebugEnclaveError,
    EnclaveAttributesError,
    EventLogError,
    MalformedQuoteError,
    RevokedError,
    RootValidityError,
    UnsupportedQuoteError,
    UntrustedRootError,
)
from cloister.sgx.quote import CERTIFICATION_PEM_CHAIN, CERTIFICATION_TYPES, Quote, parse_quote
from cloister.sgx.report import Attribute
from cloister.tdx.event_log import decode_log, replay

CollateralFor = Callable[[Quote, TrustAnchor], Collateral]
"""Finds the collateral for a parsed quote under a root; raises CollateralError if it has none."""


@dataclasses.dataclass(frozen=True)
class Authentication:
    """Whether a quote is genuine; says nothing yet about whose enclave it is."""

    checks: tuple[Check, ...]
    evidence: Evidence | None
    simulated: bool | None

    def judge(self, policy: Policy) -> Verdict:
        """Ask the policy whether the genuine enclave is the expected one.

        Raises:
            PolicyError: the policy does not say which enclave it means.
        """
        policy = completed(policy)
        checks = self.checks
        if self.evidence is not None:
            checks += (policy.verify(self.evidence),)
        return Verdict(checks, self.evidence, self.simulated)


def verify_quote(
    quote: bytes,
    *,
    collateral: Collateral,
    anchors: Sequence[TrustAnchor],
    now: datetime.datetime,
    policy: Policy,
) -> Verdict:
    """Judge a quote.

    Args:
        quote: the quote, SGX version 3 or above or TDX.
        collateral: for its kind of platform.
        anchors: the roots to believe; Intel's is not among them unless it is passed.
        now: the time at which everything must be valid (aware).
        policy: which enclave is expected; UpToDate alone is accepted if it names no TCB status.

    Returns:
        The verdict; :meth:`Verdict.require` raises what failed.

    Raises:
        PolicyError: the policy does not say which enclave it means.
    """
    return authenticate_quote(
        quote, anchors=anchors, collateral_for=lambda *_: collateral, now=now
    ).judge(policy)


def authenticate_quote(
    quote: bytes,
    *,
    anchors: Sequence[TrustAnchor],
    collateral_for: CollateralFor,
    now: datetime.datetime,
    event_log: bytes = b"",
) -> Authentication:
    """Do steps 1 to 4: find out whether the quote is genuine and of a production enclave.

    Args:
        quote: the quote.
        anchors: the roots to believe.
        collateral_for: finds the collateral.
        now: the time at which everything must be valid (aware).
        event_log: what lay beside a TDX quote; see :mod:`cloister.tdx.event_log`.
    """
    work = _Work(now=now, anchors=anchors, collateral_for=collateral_for)
    try:
        evidence = work.evidence(quote)
        if event_log:
            evidence = work.with_programs(evidence, event_log)
    except AttestationError as error:
        work.record_failure(error)
        return Authentication(tuple(work.checks), None, work.simulated)
    checks = (*work.checks, *production_checks(evidence))
    return Authentication(checks, evidence, evidence.simulated)


class _Work:
    """Steps 1 to 4: each records its check or raises why there is no going on."""

    def __init__(
        self,
        *,
        now: datetime.datetime,
        anchors: Sequence[TrustAnchor],
        collateral_for: CollateralFor,
    ) -> None:
        self._now = now
        self._anchors = anchors
        self._collateral_for = collateral_for
        self._step = ("quote format", "one whole ECDSA quote")
        self.checks: list[Check] = []
        self.simulated: bool | None = None

    def evidence(self, data: bytes) -> Evidence:
        quote = parse_quote(data)
        kind = "TDX" if quote.is_tdx else "SGX"
        self._passed(f"{kind}, version {quote.header.version}, {len(data)} bytes")
        anchor = self._anchor(quote)
        self._next("collateral", "collateral for the quote's kind of platform")
        collateral = self._collateral_for(quote, anchor)
        claims = self._claims(quote, anchor, collateral)
        self._check_supplements(Verified(quote, collateral, anchor, claims, self._now))
        return _evidence(quote, anchor, claims)

    def with_programs(self, evidence: Evidence, event_log: bytes) -> Evidence:
        """Add what an event log says, after its replay gave the quote's register."""
        self._next("event log", "a log whose replay gives RTMR 3 of a TDX quote")
        report = evidence.tdx
        if report is None:
            raise EventLogError("an event log beside an SGX quote, which needs none")
        events = decode_log(event_log)
        value = replay(events)
        if value != report.rtmr3:
            raise EventLogError(
                f"its replay gives RTMR 3 {value.hex()}, the quote has {report.rtmr3.hex()}"
            )
        self._passed(f"{len(events)} programs, and RTMR 3 is theirs")
        return dataclasses.replace(evidence, programs=events)

    def record_failure(self, error: AttestationError) -> None:
        name, expected = self._step
        found = error.message
        self.checks.append(Check(name, False, found, expected, type(error), error.hint))

    def _next(self, name: str, expected: str) -> None:
        self._step = (name, expected)

    def _passed(self, found: str) -> None:
        name, expected = self._step
        self.checks.append(Check(name, True, found, expected))

    def _anchor(self, quote: Quote) -> TrustAnchor:
        roots = (f"{anchor.name} (SHA-256 {anchor.fingerprint})" for anchor in self._anchors)
        self._next("trust anchor", " or ".join(roots) or "nothing, since no root is trusted")
        anchor = find_anchor(quote, self._anchors)
        self.simulated = anchor.simulated
        prefix = "SIMULATED: " if anchor.simulated else ""
        self._passed(f"{prefix}{anchor.name}, SHA-256 {anchor.fingerprint}")
        certificate = anchor.certificate
        period = f"{certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
        self._next("root validity", f"a time within {period}")
        if not anchor.is_valid_at(self._now):
            raise RootValidityError(f"the root is valid {period}, the time is {self._now}")
        self._passed(f"valid {period}")
        return anchor

    def _claims(self, quote: Quote, anchor: TrustAnchor, collateral: Collateral) -> dict[str, Any]:
        self._next("signatures", "signatures, revocation, dates and TCB level all to hold")
        now = int(self._now.timestamp())
        claims = dcap.verified_claims(quote.raw, collateral, anchor, now)
        self._passed("signatures, revocation, dates and TCB level hold up to the root")
        return claims

    def _check_supplements(self, verified: Verified) -> None:
        for supplement in SUPPLEMENTS:
            self._next(supplement.name, supplement.expected)
            self._passed(supplement.found(verified))


def find_anchor(quote: Quote, anchors: Sequence[TrustAnchor]) -> TrustAnchor:
    """Return the trusted root to which the quote's own certificates lead.

    A platform shows the same certificates every time, so that a chain that led to a root is
    remembered; one that did not is not.

    Raises:
        UnsupportedQuoteError: the quote carries no certificate chain.
        UntrustedRootError: they lead elsewhere.
    """
    kind = quote.signature.certification_type
    if kind != CERTIFICATION_PEM_CHAIN:
        content = CERTIFICATION_TYPES.get(kind, "of unknown meaning")
        raise UnsupportedQuoteError(
            f"the quote carries no certificate chain, but certification data of type {kind}"
            f" ({content})",
            hint="let the platform's quote provider library put the PCK certificate chain into"
            " its quotes (type 5): it needs a PCCS from which to get it",
        )
    return _anchor_of_chain(quote.signature.certification_data, tuple(anchors))


@functools.lru_cache(maxsize=256)
def _anchor_of_chain(certification_data: bytes, anchors: tuple[TrustAnchor, ...]) -> TrustAnchor:
    chain = dcap.pck_chain(certification_data)
    for anchor in anchors:
        if anchor.issued(chain[-1]):
            _require_unbroken(chain)
            return anchor
    raise _untrusted(chain[-1])


def _untrusted(top: x509.Certificate) -> UntrustedRootError:
    # Names are not shown and not even decoded: whoever made the certificate chose them.
    fingerprint = top.fingerprint(hashes.SHA256()).hex()
    if b"SIMULATED" not in top.tbs_certificate_bytes:
        return UntrustedRootError(f"the certificates lead to another root (SHA-256 {fingerprint})")
    return UntrustedRootError(
        f"the certificates lead to another root, a SIMULATED one (SHA-256 {fingerprint})",
        hint="a simulated platform is trusted only by name: export its bundle there"
        " (cloister platform export FILE), pass it here (--trust-simulated FILE)",
    )


def _require_unbroken(chain: list[x509.Certificate]) -> None:
    """Check that each certificate was issued by the next.

    dcap-qvl takes what it needs of the chain and ignores the rest; here none may be idle, so
    that everything in an accepted quote is what its issuer signed.
    """
    for number, (certificate, issuer) in enumerate(itertools.pairwise(chain), start=1):
        if not TrustAnchor(issuer).issued(certificate):
            raise CertificateChainError(
                f"certificate {number} of the quote was not issued by certificate {number + 1}"
            )


def _evidence(quote: Quote, anchor: TrustAnchor, claims: dict[str, Any]) -> Evidence:
    _require_same_reading(quote, claims)
    platform = claims["platform"]
    return Evidence(
        quote=quote,
        anchor=anchor,
        tcb_status=_status(claims),
        advisories=_advisories(claims),
        tcb_date=_tcb_date(claims),
        fmspc=bytes(platform["pck"]["fmspc"]),
        ppid=bytes(platform["pck"]["ppid"]),
        collateral_expires=dcap.as_utc(
            min(claims["earliest_expiration_date"], claims["qe_iden_earliest_expiration_date"])
        ),
    )


def _levels(claims: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the levels that count besides the one that the library judged by.

    These are the quoting enclave's and, of a TD report of 1.5, the present one: such a report tells
    the TCB at launch and now, and the library asks the second only whether launching anew would
    help, so that a platform which got worse would not show.
    """
    present = claims["platform"]["current_tcb_level"]
    return [claims["qe"]["tcb_level"], *([present] if present else [])]


def _status(claims: dict[str, Any]) -> str:
    """Join the statuses of all that counts."""
    others = (level["tcbStatus"] for level in _levels(claims))
    statuses: list[str] = [claims["tcb"]["status"], *others]
    if REVOKED in statuses:
        raise RevokedError("the platform's TCB level is revoked")
    return functools.reduce(joined, statuses)


def _advisories(claims: dict[str, Any]) -> tuple[str, ...]:
    """Join the advisories of all that counts."""
    others = (name for level in _levels(claims) for name in level.get("advisoryIDs") or ())
    return tuple(sorted({*claims["tcb"]["advisory_ids"], *others}))


def _tcb_date(claims: dict[str, Any]) -> datetime.datetime:
    """Return the earliest date of all that counts."""
    try:
        others = [parse_time(level["tcbDate"]) for level in _levels(claims)]
    except (ValueError, TypeError, KeyError) as error:
        raise CollateralError("collateral: the date of a TCB level cannot be read") from error
    return min(dcap.as_utc(claims["platform"]["tcb_date_tag"]), *others)


def _require_same_reading(quote: Quote, claims: dict[str, Any]) -> None:
    """Refuse a quote that our parser and the library read differently."""
    (report,) = claims["report"].values()
    nested = report.get("base", report)
    ours = quote.report
    names = ("mr_td", "report_data") if quote.is_tdx else ("mr_enclave", "mr_signer", "report_data")
    if any(nested.get(name) != getattr(ours, name).hex() for name in names):
        raise MalformedQuoteError("the quote is ambiguous: two parsers read it differently")


def production_checks(evidence: Evidence) -> list[Check]:
    """Check the attributes that every enclave in production has."""
    report = evidence.sgx
    if report is None:
        tdx = evidence.tdx
        debug = tdx is None or tdx.debug
        return [_flag("debug", debug, wanted=False, error=DebugEnclaveError)]
    flags = Attribute(report.flags)
    return [
        _flag("DEBUG", Attribute.DEBUG in flags, wanted=False, error=DebugEnclaveError),
        _flag("INIT", Attribute.INIT in flags, wanted=True),
        _flag("MODE64", Attribute.MODE64 in flags, wanted=True),
        _flag("PROVISION_KEY", Attribute.PROVISION_KEY in flags, wanted=False),
        _flag("EINITTOKEN_KEY", Attribute.EINITTOKEN_KEY in flags, wanted=False),
    ]


def _flag(
    name: str,
    found: bool,
    *,
    wanted: bool,
    error: type[AttestationError] = EnclaveAttributesError,
) -> Check:
    words = {True: "set", False: "not set"}
    return Check(f"attribute {name}", found == wanted, words[found], words[wanted], error)
