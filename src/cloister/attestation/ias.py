"""Stored reports of Intel's Attestation Service (EPID), verified without that service.

The service answered each EPID quote with a signed report. It has been retired, so that no new
report can be had and no old one be renewed; a report that was stored in time can still be checked
for what it said then. Source: Attestation Service API, versions 3 and 4: the signature is RSA
PKCS#1 v1.5 with SHA-256 over the exact body of the answer, in the header X-IASReport-Signature
(base64); its certificates are in X-IASReport-Signing-Certificate (URL-encoded PEM, signer first).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import hmac
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import parse_json
from cloister.attestation.evidence import Evidence
from cloister.attestation.policy import Policy, completed
from cloister.attestation.verdict import Check, Verdict
from cloister.attestation.verify import production_checks
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    IasReportError,
    InputError,
    QuoteSignatureError,
    ReportDataError,
    RevokedError,
    UntrustedRootError,
)
from cloister.sgx.epid import BODY_SIZE, EpidQuote, parse_epid_quote

MAX_REPORT_SIZE = 256 * 1024
"""Longest stored answer that is read, in bytes; real ones have 4 to 6 kilobytes."""

STATUSES = {
    "OK": "UpToDate",
    "SW_HARDENING_NEEDED": "SWHardeningNeeded",
    "CONFIGURATION_NEEDED": "ConfigurationNeeded",
    "CONFIGURATION_AND_SW_HARDENING_NEEDED": "ConfigurationAndSWHardeningNeeded",
    "GROUP_OUT_OF_DATE": "OutOfDate",
}
"""The service's statuses that a policy may accept, and what policies call them."""
_REVOKED = ("GROUP_REVOKED", "SIGNATURE_REVOKED", "KEY_REVOKED")
_RETIRED = "Intel has retired this service, so that nothing newer can be had"


@dataclasses.dataclass(frozen=True)
class IasReport:
    """A stored answer of the service; unverified.

    Attributes:
        body: exactly the signed bytes.
        signature: raw.
        certificates: the signer's and those above it.
    """

    body: bytes
    signature: bytes
    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def from_response(cls, data: bytes) -> IasReport:
        """Read an HTTP answer with its headers, as ``curl -i`` prints it.

        Raises:
            IasReportError: not such an answer.
        """
        _require_size(data)
        # Proxies and "100 Continue" put more blocks of headers in front of the last one.
        while data.startswith(b"HTTP/"):
            head, found, data = data.replace(b"\r\n\r\n", b"\n\n", 1).partition(b"\n\n")
            if not found:
                raise IasReportError("stored report: the headers have no end")
        headers = {}
        for line in head.decode("latin-1").splitlines()[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        try:
            signature = headers["x-iasreport-signature"]
            certificates = headers["x-iasreport-signing-certificate"]
        except KeyError as error:
            raise IasReportError(f"stored report: the header {error.args[0]} is missing") from error
        return cls.from_parts(data, signature.encode("latin-1"), certificates.encode("latin-1"))

    @classmethod
    def from_parts(cls, body: bytes, signature: bytes, certificates: bytes) -> IasReport:
        """Read the parts that ``gramine-sgx-ias-request`` stores in files of their own.

        Args:
            body: the report, JSON, unchanged.
            signature: base64, or 256 raw bytes.
            certificates: PEM, URL-encoded or not, signer first.

        Raises:
            IasReportError: a part is not of its form.
        """
        for part in (body, signature, certificates):
            _require_size(part)
        try:
            pem = certificates
            if b"%20" in certificates:
                pem = urllib.parse.unquote_to_bytes(certificates)
            chain = tuple(x509.load_pem_x509_certificates(pem))
        except (ValueError, x509.InvalidVersion) as error:
            raise IasReportError("stored report: the certificates cannot be read") from error
        return cls(body, _signature(signature), chain)


def _require_size(part: bytes) -> None:
    if len(part) > MAX_REPORT_SIZE:
        raise IasReportError(f"stored report: {len(part)} bytes, at most {MAX_REPORT_SIZE}")


def _signature(data: bytes) -> bytes:
    if len(data) == 256:
        return data
    try:
        return base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise IasReportError("stored report: the signature is not base64") from error


def verify_ias_report(
    report: IasReport,
    quote: bytes,
    *,
    anchors: Sequence[TrustAnchor],
    now: datetime.datetime,
    policy: Policy,
    nonce: str | None = None,
) -> Verdict:
    """Judge an EPID quote by a stored report.

    Args:
        report: what the service answered about the quote.
        quote: the quote itself, or its first 432 bytes.
        anchors: roots to believe, e.g. :func:`cloister.attestation.anchors.intel_ias`.
        now: the present (aware); no report may be of the future.
        policy: which enclave is expected. Statuses have the names of :data:`STATUSES`.
        nonce: what was sent with the request; None does not look at it.

    Raises:
        PolicyError: the policy does not say which enclave it means.
    """
    policy = completed(policy)
    work = _Work(anchors, now)
    try:
        evidence = work.evidence(report, parse_epid_quote(quote), nonce)
    except AttestationError as error:
        name, expected = work.step
        failed = Check(name, False, error.message, expected, type(error), error.hint)
        return Verdict((*work.checks, failed), None, work.simulated)
    checks = (*work.checks, *production_checks(evidence), policy.verify(evidence))
    return Verdict(checks, evidence, work.simulated)


class _Work:
    """Each step records its check, or raises why there is no going on."""

    def __init__(self, anchors: Sequence[TrustAnchor], now: datetime.datetime) -> None:
        self._anchors = anchors
        self._now = now
        self.step = ("quote format", "one whole EPID quote")
        self.checks: list[Check] = []
        self.simulated: bool | None = None

    def evidence(self, report: IasReport, quote: EpidQuote, nonce: str | None) -> Evidence:
        self._passed(f"EPID, version {quote.header.version}")
        anchor = self._anchor(report)
        signer = report.certificates[0]
        self._next("report signature", "a signature of the service over the report")
        _require_signature(report, signer)
        self._passed("holds, by the certificate that the root issued")
        body = _body(report)
        self._time(body, signer)
        self._next("report subject", "a report about this quote")
        if not hmac.compare_digest(body.quote, quote.raw):
            raise IasReportError("the report is about another quote")
        self._passed("it repeats this quote")
        self._nonce(body, nonce)
        self._next("quote signature", "a status that does not condemn the quote")
        status = _status(body.status)
        self._passed(f"{body.status}, here called {status}")
        return Evidence(
            quote=quote,
            anchor=anchor,
            tcb_status=status,
            advisories=tuple(sorted(body.advisories)),
            tcb_date=None,
            fmspc=b"",
            ppid=b"",
            collateral_expires=signer.not_valid_after_utc,
        )

    def _next(self, name: str, expected: str) -> None:
        self.step = (name, expected)

    def _passed(self, found: str) -> None:
        name, expected = self.step
        self.checks.append(Check(name, True, found, expected))

    def _anchor(self, report: IasReport) -> TrustAnchor:
        roots = (f"{anchor.name} (SHA-256 {anchor.fingerprint})" for anchor in self._anchors)
        self._next("trust anchor", " or ".join(roots) or "nothing, since no root is trusted")
        if not report.certificates:
            raise IasReportError("stored report: it comes without a certificate")
        for anchor in self._anchors:
            if anchor.certificate != report.certificates[0] and anchor.issued(
                report.certificates[0]
            ):
                break
        else:
            raise UntrustedRootError("the report's certificate is of another root")
        self.simulated = anchor.simulated
        prefix = "SIMULATED: " if anchor.simulated else ""
        self._passed(f"{prefix}{anchor.name}, SHA-256 {anchor.fingerprint}")
        return anchor

    def _time(self, body: _Body, signer: x509.Certificate) -> None:
        valid = (signer.not_valid_before_utc, signer.not_valid_after_utc)
        self._next("report time", f"when its certificate was valid, and not after {self._now}")
        if not valid[0] <= body.timestamp <= valid[1]:
            raise CertificateChainError(
                f"the report is of {body.timestamp}, its certificate valid {valid[0]} to {valid[1]}"
            )
        if body.timestamp > self._now:
            raise IasReportError(f"the report is of the future: {body.timestamp}")
        age = (self._now - body.timestamp).days
        self._passed(f"{body.timestamp}, {age} days before. EPID: {_RETIRED}")

    def _nonce(self, body: _Body, nonce: str | None) -> None:
        if nonce is None:
            return
        self._next("nonce", nonce)
        found = body.nonce or ""
        if not hmac.compare_digest(found.encode(), nonce.encode()):
            raise ReportDataError(f"the report's nonce is {found!r}" if found else "no nonce in it")
        self._passed(found)


def _require_signature(report: IasReport, signer: x509.Certificate) -> None:
    key = signer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise CertificateChainError("the report's certificate has no RSA key of 2048 bits or more")
    try:
        key.verify(report.signature, report.body, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise QuoteSignatureError("the report was changed, or not signed by the service") from error


@dataclasses.dataclass(frozen=True)
class _Body:
    """What a signed report says."""

    quote: bytes
    status: str
    timestamp: datetime.datetime
    nonce: str | None
    advisories: tuple[str, ...]


def _body(report: IasReport) -> _Body:
    try:
        data = parse_json(report.body, "stored report")
        quote = base64.b64decode(data["isvEnclaveQuoteBody"], validate=True)
        if len(quote) != BODY_SIZE:
            raise IasReportError(f"the report's quote has {len(quote)} bytes, expected {BODY_SIZE}")
        nonce: Any = data.get("nonce")
        advisories = data.get("advisoryIDs", [])
        return _Body(
            quote=quote,
            status=_text(data["isvEnclaveQuoteStatus"]),
            timestamp=_utc(_text(data["timestamp"])),
            nonce=None if nonce is None else _text(nonce),
            advisories=tuple(_text(item) for item in advisories),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IasReportError("the report lacks a member, or has one of another kind") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]*", value):
        raise TypeError("not printable text")
    return value


def _utc(text: str) -> datetime.datetime:
    # The service writes UTC without saying so, with or without fractions.
    time = datetime.datetime.strptime(text.partition(".")[0], "%Y-%m-%dT%H:%M:%S")
    return time.replace(tzinfo=datetime.timezone.utc)


def _status(found: str) -> str:
    if found in STATUSES:
        return STATUSES[found]
    if found in _REVOKED:
        raise RevokedError(f"the service said {found}")
    raise QuoteSignatureError(f"the service said {found}")


def read_stored(
    report: bytes, signature: bytes | None = None, certificates: bytes | None = None
) -> IasReport:
    """Read a stored report in either form: an HTTP answer, or a body with its two parts.

    Raises:
        InputError: the parts are missing, or there beside an HTTP answer.
        IasReportError: a part is not of its form.
    """
    whole = report.startswith(b"HTTP/")
    if whole and signature is None and certificates is None:
        return IasReport.from_response(report)
    if not whole and signature is not None and certificates is not None:
        return IasReport.from_parts(report, signature, certificates)
    raise InputError(
        "the stored report is neither a whole HTTP answer nor a body with signature and"
        " certificates",
        hint="give --ias-report an answer with its headers (curl -i), or the bare body together"
        " with --ias-signature and --ias-certificates",
    )
