"""RA-TLS certificates: an ephemeral key, and quotes that vouch for it.

A certificate carries two quotes (Gramine 1.8 and above): the legacy extension, whose value is a
raw quote bound to SHA-256(SubjectPublicKeyInfo), and the TCG DICE tagged evidence. Verifiers
look at the evidence and fall back to the legacy extension only where no evidence is present.
Graphene's certificates have the legacy extension alone and an RSA-3072 key.
"""

from __future__ import annotations

import dataclasses
import datetime
import hmac
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.errors import BindingError, EvidenceFormatError
from cloister.ratls.evidence import (
    TaggedEvidence,
    decode_evidence,
    encode_claims,
    encode_evidence,
    report_data_of,
    require_key_claim,
)
from cloister.ratls.validity import DEFAULT_NOT_AFTER, DEFAULT_NOT_BEFORE
from cloister.sgx.quote import parse_quote

LEGACY_OID = x509.ObjectIdentifier("0.6.9.42.840.113741.1337.6")
"""The legacy quote: its bytes hold tag and length of the intended OID by mistake, for ever."""
EVIDENCE_OID = x509.ObjectIdentifier("2.23.133.5.4.9")
"""TCG DICE tagged evidence."""

MIN_EXTENSION_SIZE = 128
MAX_EXTENSION_SIZE = 8192
MAX_CERTIFICATE_SIZE = 32768


QuoteFor = Callable[[bytes], bytes]
"""Returns a quote of the running enclave over 64 bytes of report data."""


@dataclasses.dataclass(frozen=True)
class RaTlsIdentity:
    """A fresh key and the certificate that proves where it lives."""

    key: ec.EllipticCurvePrivateKey = dataclasses.field(repr=False)
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclasses.dataclass(frozen=True)
class AttestedKey:
    """What a peer's certificate claims, with the binding of quote and key already checked.

    Attributes:
        quote: the quote that is bound to the key; not yet verified itself.
        spki: the key's SubjectPublicKeyInfo, DER.
        legacy: the quote came from the legacy extension.
        event_log: what lies beside the quote, not yet verified itself; empty if nothing does.
    """

    quote: bytes = dataclasses.field(repr=False)
    spki: bytes = dataclasses.field(repr=False)
    legacy: bool
    event_log: bytes = b""


def create_identity(
    quote_for: QuoteFor,
    *,
    event_log: bytes = b"",
    not_before: datetime.datetime = DEFAULT_NOT_BEFORE,
    not_after: datetime.datetime = DEFAULT_NOT_AFTER,
) -> RaTlsIdentity:
    """Make an ECDSA P-384 key and a self-signed certificate with both bindings.

    Args:
        quote_for: asked twice, first for the legacy binding.
        event_log: what has to lie beside the quotes; see :mod:`cloister.tdx.event_log`.
        not_before: start of validity (aware); verifiers do not look at it.
        not_after: end of validity (aware), likewise.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    spki = _spki(key.public_key())
    legacy = quote_for(report_data_of(spki))
    claims = encode_claims(spki, event_log)
    evidence = TaggedEvidence(quote=quote_for(report_data_of(claims)), claims=claims)
    certificate = (
        _builder(key.public_key(), not_before, not_after)
        .add_extension(x509.UnrecognizedExtension(LEGACY_OID, legacy), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(EVIDENCE_OID, encode_evidence(evidence)), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return RaTlsIdentity(key, certificate)


def _builder(
    public: ec.EllipticCurvePublicKey, not_before: datetime.datetime, not_after: datetime.datetime
) -> x509.CertificateBuilder:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "RATLS"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Cloister"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(constraints, critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(authority, critical=False)
    )


def attested_key(certificate_der: bytes) -> AttestedKey:
    """Take the quote out of a peer's certificate and check that it is bound to the key.

    Dates, names and the self-signature are not looked at: TLS proves possession of the key, and
    the quote says everything else.

    Raises:
        EvidenceFormatError: no evidence, or malformed evidence; there is no fallback then.
        BindingError: the quote was made for another key.
    """
    certificate = _parse(certificate_der)
    extensions = _extensions(certificate)
    key = _public_key(certificate)
    evidence = _value(extensions, EVIDENCE_OID, "tagged evidence")
    if evidence is not None:
        return _from_evidence(evidence, _require_ec(key))
    legacy = _value(extensions, LEGACY_OID, "legacy quote")
    if legacy is None:
        raise EvidenceFormatError(
            "the certificate carries no evidence: it is an ordinary one, not of an enclave",
            hint="only a program in an enclave can present an RA-TLS certificate",
        )
    return _from_legacy(legacy, _require_known(key))


def _from_evidence(value: bytes, spki: bytes) -> AttestedKey:
    evidence = decode_evidence(value)
    _require_report_data(evidence.quote, evidence.claims)
    event_log = require_key_claim(evidence.claims, spki)
    return AttestedKey(evidence.quote, spki, legacy=False, event_log=event_log)


def _from_legacy(quote: bytes, spki: bytes) -> AttestedKey:
    _require_report_data(quote, spki)
    return AttestedKey(quote, spki, legacy=True)


def _require_report_data(quote: bytes, bound: bytes) -> None:
    if not hmac.compare_digest(parse_quote(quote).report_data, report_data_of(bound)):
        raise BindingError("the quote's report data is not the hash of what it must vouch for")


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_SIZE:
        raise EvidenceFormatError(
            f"the certificate has {len(der)} bytes, at most {MAX_CERTIFICATE_SIZE}"
        )
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise EvidenceFormatError("the certificate cannot be read") from error


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceFormatError("the certificate's key cannot be read") from error


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise EvidenceFormatError("the certificate's extensions cannot be read") from error


def _value(extensions: x509.Extensions, oid: x509.ObjectIdentifier, what: str) -> bytes | None:
    try:
        extension = extensions.get_extension_for_oid(oid)
    except x509.ExtensionNotFound:
        return None
    if extension.critical or not isinstance(extension.value, x509.UnrecognizedExtension):
        raise EvidenceFormatError(f"the certificate's {what} extension must not be critical")
    value = extension.value.value
    if not MIN_EXTENSION_SIZE <= len(value) <= MAX_EXTENSION_SIZE:
        raise EvidenceFormatError(
            f"the certificate's {what} has {len(value)} bytes,"
            f" expected {MIN_EXTENSION_SIZE} to {MAX_EXTENSION_SIZE}"
        )
    return value


def _require_ec(key: object) -> bytes:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp384r1", "secp256r1"):
        return _spki(key)
    raise EvidenceFormatError("the certificate's key is not ECDSA P-384 or P-256")


def _require_known(key: object) -> bytes:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == 3072:
        return _spki(key)
    return _require_ec(key)


def _spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
