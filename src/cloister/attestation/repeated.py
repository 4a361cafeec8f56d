"""Quotes that say of another key what a genuine quote has said before.

A platform attests to the same enclave again and again. Its SGX quotes then differ in two places
alone: the report data, which the enclave chose, and the signature over header and report. Of
steps 1 to 4 of :mod:`cloister.attestation.verify` nothing but that signature depends on either:
dcap-qvl hands report data of SGX quotes through unread. So what was found out about the other
bytes, the attestation key's certificates among them, holds for the new quote as well: if the
signature holds under that key, under the same root with the same collateral, and not before the
time of the first verification nor after anything that was verified runs out.

TDX quotes are verified in full every time: their TCB level depends on more than certificates.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import threading

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral
from cloister.attestation.dcap import pck_chain
from cloister.attestation.evidence import Evidence
from cloister.attestation.expiry import expires
from cloister.attestation.signatures import attestation_key, is_signed
from cloister.attestation.verify import Authentication, CollateralFor, authenticate_quote
from cloister.errors import AttestationError
from cloister.sgx.quote import HEADER_SIZE, Quote, parse_quote
from cloister.sgx.report import REPORT_BODY_SIZE, REPORT_DATA_SIZE

MAX_REMEMBERED = 1024
"""Pairs of an enclave and a platform; each takes some ten kilobytes."""

_SIGNED = HEADER_SIZE + REPORT_BODY_SIZE
_REPORT_DATA = slice(_SIGNED - REPORT_DATA_SIZE, _SIGNED)
_SIGNATURE = slice(_SIGNED + 4, _SIGNED + 4 + 64)
"""Version 3: the 4 bytes before it are the length of the signature data."""


@dataclasses.dataclass(frozen=True)
class _Known:
    """A genuine quote, and what it was verified with."""

    authentication: Authentication
    evidence: Evidence
    anchors: tuple[TrustAnchor, ...]
    collateral: Collateral
    attestation_key: ec.EllipticCurvePublicKey
    verified: datetime.datetime
    runs_out: datetime.datetime

    def holds_at(self, now: datetime.datetime) -> bool:
        return self.verified <= now < self.runs_out


class RepeatedQuotes:
    """Remembers genuine SGX quotes of version 3. Threads may share it."""

    def __init__(self) -> None:
        self._known: collections.OrderedDict[bytes, _Known] = collections.OrderedDict()
        self._lock = threading.Lock()

    def authenticate(
        self,
        data: bytes,
        *,
        anchors: tuple[TrustAnchor, ...],
        collateral_for: CollateralFor,
        now: datetime.datetime,
    ) -> Authentication:
        """Do what :func:`authenticate_quote` does, with less work for a quote that repeats one.

        Args:
            data: the quote; nothing lies beside it.
            anchors: the roots to believe.
            collateral_for: finds the collateral.
            now: the time at which everything must be valid (aware).
        """
        known = self._find(_unchosen(data))
        if known is not None and known.anchors == anchors and known.holds_at(now):
            repeated = _repeated(data, known, collateral_for)
            if repeated is not None:
                return repeated
        # Whatever is wrong with it, or new, the whole verification finds and says.
        used: list[Collateral] = []

        def noted(quote: Quote, anchor: TrustAnchor) -> Collateral:
            used.append(collateral_for(quote, anchor))
            return used[-1]

        found = authenticate_quote(data, anchors=anchors, collateral_for=noted, now=now)
        if found.evidence is not None and all(check.passed for check in found.checks):
            self._remember(found, found.evidence, anchors, used[-1], now)
        return found

    def _remember(
        self,
        authentication: Authentication,
        evidence: Evidence,
        anchors: tuple[TrustAnchor, ...],
        collateral: Collateral,
        now: datetime.datetime,
    ) -> None:
        quote = evidence.quote
        if not isinstance(quote, Quote) or quote.is_tdx or quote.header.version != 3:
            return
        chain = pck_chain(quote.signature.certification_data)
        certificates = (*chain, evidence.anchor.certificate)
        known = _Known(
            authentication,
            evidence,
            anchors,
            collateral,
            attestation_key(quote),
            verified=now,
            runs_out=min(
                evidence.collateral_expires,
                expires(collateral),
                *(certificate.not_valid_after_utc for certificate in certificates),
            ),
        )
        with self._lock:
            self._known[_unchosen(quote.raw)] = known
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)

    def _find(self, unchosen: bytes) -> _Known | None:
        with self._lock:
            known = self._known.get(unchosen)
            if known is not None:
                self._known.move_to_end(unchosen)
            return known


def _unchosen(data: bytes) -> bytes:
    """Return a quote of version 3 without report data and without the signature over the report."""
    return (
        data[: _REPORT_DATA.start]
        + data[_REPORT_DATA.stop : _SIGNATURE.start]
        + data[_SIGNATURE.stop :]
    )


def _repeated(data: bytes, known: _Known, collateral_for: CollateralFor) -> Authentication | None:
    """Return what is known of the quote, if it is signed and no other collateral counts now."""
    try:
        quote = parse_quote(data)
        if collateral_for(quote, known.evidence.anchor) != known.collateral:
            return None
    except AttestationError:
        return None
    if not is_signed(known.attestation_key, quote.signature.signature, quote.signed):
        return None
    evidence = dataclasses.replace(known.evidence, quote=quote)
    return dataclasses.replace(known.authentication, evidence=evidence)
