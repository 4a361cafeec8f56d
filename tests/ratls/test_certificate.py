"""RA-TLS certificates: byte for byte Gramine's shape, and only genuine bindings accepted."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import BindingError, EvidenceFormatError, MalformedQuoteError, RefusedError
from cloister.ratls.certificate import (
    EVIDENCE_OID,
    LEGACY_OID,
    RaTlsIdentity,
    attested_key,
    create_identity,
)
from cloister.ratls.evidence import TaggedEvidence, encode_claims, encode_evidence, report_data_of
from cloister.sgx.quote import QuoteSignature, pack_quote_v3, parse_quote

UTC = datetime.timezone.utc
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def quote_for(report_data: bytes) -> bytes:
    """Return a well-formed quote with this report data; nobody signed it."""
    body = bytes(320) + report_data
    header = struct.pack("<HHIHH", 3, 2, 0, 1, 2) + bytes(36)
    empty = QuoteSignature(bytes(64), bytes(64), bytes(384), bytes(64), bytes(32), 5, b"")
    return pack_quote_v3(header + body, empty)


def spki_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate(
    key: PrivateKey, *extensions: tuple[x509.ObjectIdentifier, bytes], critical: bool = False
) -> bytes:
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(
        datetime.datetime(2001, 1, 1)
    )
    builder = builder.not_valid_after(datetime.datetime(2002, 1, 1))
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=critical)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.DER)


def legacy(key: PrivateKey) -> tuple[x509.ObjectIdentifier, bytes]:
    return LEGACY_OID, quote_for(report_data_of(spki_of(key)))


def evidence(key: PrivateKey) -> tuple[x509.ObjectIdentifier, bytes]:
    claims = encode_claims(spki_of(key))
    quote = quote_for(report_data_of(claims))
    return EVIDENCE_OID, encode_evidence(TaggedEvidence(quote, claims))


@pytest.fixture(scope="module")
def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="module")
def rsa_3072() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072)


@pytest.fixture(scope="module")
def identity() -> RaTlsIdentity:
    return create_identity(quote_for)


def test_our_own_certificate_is_accepted(identity: RaTlsIdentity) -> None:
    key = attested_key(identity.der)
    assert not key.legacy
    assert key.spki == spki_of(identity.key)
    assert len(key.spki) == 120
    assert parse_quote(key.quote).report_data == report_data_of(encode_claims(key.spki))


def test_it_has_the_shape_of_gramines(identity: RaTlsIdentity) -> None:
    made = identity.certificate
    assert made.version is x509.Version.v3
    assert made.serial_number == 1
    assert made.subject == made.issuer
    assert made.not_valid_before_utc == datetime.datetime(2001, 1, 1, tzinfo=UTC)
    assert made.not_valid_after_utc == datetime.datetime(2030, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
    oids = [extension.oid.dotted_string for extension in made.extensions]
    assert oids == [
        "2.5.29.19",
        "2.5.29.14",
        "2.5.29.35",
        "0.6.9.42.840.113741.1337.6",
        "2.23.133.5.4.9",
    ]
    assert not any(extension.critical for extension in made.extensions)


def test_the_bytes_that_verifiers_search_for_are_there(identity: RaTlsIdentity) -> None:
    der = identity.der
    quote = quote_for(report_data_of(spki_of(identity.key)))
    size = len(quote).to_bytes(2, "big")
    assert bytes.fromhex("060b06092a864886f84d8a3906") + b"\x04\x82" + size + quote in der
    assert bytes.fromhex("0606678105050409") + b"\x04\x82" in der
    assert b"\x06\x03\x55\x1d\x13\x04\x02\x30\x00" in der  # basicConstraints, empty


def test_both_quotes_are_asked_for_legacy_first() -> None:
    asked: list[bytes] = []

    def remember(report_data: bytes) -> bytes:
        asked.append(report_data)
        return quote_for(report_data)

    spki = spki_of(create_identity(remember).key)
    assert asked == [report_data_of(spki), report_data_of(encode_claims(spki))]


def test_each_identity_has_a_key_of_its_own() -> None:
    assert spki_of(create_identity(quote_for).key) != spki_of(create_identity(quote_for).key)


def test_openssl_accepts_the_certificate(identity: RaTlsIdentity, tmp_path: Path) -> None:
    path = tmp_path / "ratls.pem"
    path.write_bytes(identity.certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-CAfile", str(path), "-check_ss_sig", str(path)]
    assert "OK" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_validity_can_be_chosen() -> None:
    early, late = (
        datetime.datetime(2026, 1, 1, tzinfo=UTC),
        datetime.datetime(2026, 2, 1, tzinfo=UTC),
    )
    made = create_identity(quote_for, not_before=early, not_after=late).certificate
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (early, late)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256R1()])
def test_both_generations_of_elliptic_curve_keys(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert attested_key(certificate(key, legacy(key))).legacy
    assert not attested_key(certificate(key, evidence(key))).legacy


def test_graphenes_rsa_certificates(rsa_3072: rsa.RSAPrivateKey) -> None:
    assert len(spki_of(rsa_3072)) == 422
    assert attested_key(certificate(rsa_3072, legacy(rsa_3072))).legacy


def test_rsa_has_no_tagged_evidence(rsa_3072: rsa.RSAPrivateKey) -> None:
    with pytest.raises(EvidenceFormatError, match="P-384"):
        attested_key(certificate(rsa_3072, evidence(rsa_3072)))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-521", "Ed25519", "RSA-2048"],
)
def test_other_keys_are_refused(key: PrivateKey) -> None:
    for extension in (legacy(key), evidence(key)):
        with pytest.raises(EvidenceFormatError, match="key"):
            attested_key(certificate(key, extension))


def test_evidence_beats_the_legacy_quote(p384: ec.EllipticCurvePrivateKey) -> None:
    bad_legacy = (LEGACY_OID, quote_for(bytes(64)))
    assert not attested_key(certificate(p384, bad_legacy, evidence(p384))).legacy


@pytest.mark.parametrize(
    "value",
    [b"", b"x" * 200, encode_evidence(TaggedEvidence(quote_for(bytes(64)), encode_claims(b"")))],
)
def test_bad_evidence_does_not_fall_back(p384: ec.EllipticCurvePrivateKey, value: bytes) -> None:
    with pytest.raises(RefusedError):
        attested_key(certificate(p384, legacy(p384), (EVIDENCE_OID, value)))


def test_quotes_for_another_key_are_refused(p384: ec.EllipticCurvePrivateKey) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    for extension in (legacy(p384), evidence(p384)):
        with pytest.raises(BindingError):
            attested_key(certificate(other, extension))


def test_report_data_must_be_exact(p384: ec.EllipticCurvePrivateKey) -> None:
    right = report_data_of(spki_of(p384))
    for wrong in (right[:63] + b"\x01", b"\0" * 32 + right[:32], bytes(64)):
        with pytest.raises(BindingError):
            attested_key(certificate(p384, (LEGACY_OID, quote_for(wrong))))


def test_the_evidence_of_one_and_claims_of_another_are_refused(
    p384: ec.EllipticCurvePrivateKey,
) -> None:
    quote = quote_for(report_data_of(encode_claims(b"another key")))
    mixed = encode_evidence(TaggedEvidence(quote, encode_claims(spki_of(p384))))
    with pytest.raises(BindingError, match="report data"):
        attested_key(certificate(p384, (EVIDENCE_OID, mixed)))


def test_no_evidence_at_all(p384: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(EvidenceFormatError, match="no evidence") as caught:
        attested_key(certificate(p384))
    assert "RA-TLS" in str(caught.value.hint)


def test_critical_extensions_are_refused(p384: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(EvidenceFormatError, match="critical"):
        attested_key(certificate(p384, evidence(p384), critical=True))


@pytest.mark.parametrize("size", [0, 127, 8193])
def test_extensions_of_impossible_size_are_refused(
    p384: ec.EllipticCurvePrivateKey, size: int
) -> None:
    with pytest.raises(EvidenceFormatError, match="128 to 8192"):
        attested_key(certificate(p384, (LEGACY_OID, bytes(size))))


def test_a_quote_that_is_none_is_refused(p384: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(MalformedQuoteError):
        attested_key(certificate(p384, (LEGACY_OID, b"\x03\x00\x02" + bytes(400))))


def test_the_certificate_of_the_real_tool_is_refused_for_its_binding(data: Path) -> None:
    """Both quotes in it are a static sample that vouches for no key."""
    text = (data / "ratls" / "gramine_ratls_cert.pem").read_bytes().rstrip(b"\0")
    der = x509.load_pem_x509_certificate(text.replace(b"TRUSTED ", b"")).public_bytes(Encoding.DER)
    with pytest.raises(BindingError, match="report data"):
        attested_key(der)


def test_the_real_tools_certificate_has_our_extensions_shape(data: Path) -> None:
    text = (data / "ratls" / "gramine_ratls_cert.pem").read_bytes().rstrip(b"\0")
    theirs = x509.load_pem_x509_certificate(text.replace(b"TRUSTED ", b""))
    ours = create_identity(quote_for).certificate
    assert [e.oid for e in ours.extensions] == [e.oid for e in theirs.extensions]
    assert [e.critical for e in ours.extensions] == [e.critical for e in theirs.extensions]
    assert type(ours.public_key()) is type(theirs.public_key())
    value = theirs.extensions.get_extension_for_oid(EVIDENCE_OID).value
    assert isinstance(value, x509.UnrecognizedExtension)
    quote = (data / "quotes" / "sgx_quote").read_bytes()
    key = theirs.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert value.value == encode_evidence(TaggedEvidence(quote, encode_claims(key)))
    assert hashlib.sha256(key).digest() in value.value


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_changed_certificate_is_refused_or_says_the_same(data: st.DataObject) -> None:
    der = bytearray(SAMPLE.der)
    der[data.draw(st.integers(0, len(der) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        key = attested_key(bytes(der))
    except RefusedError:
        return
    assert key.spki == spki_of(SAMPLE.key)
    # A bit of the evidence's OID takes the evidence away; the legacy quote is bound to the key too.
    legacy = hashlib.sha256(key.spki).digest() + bytes(32)
    bindings = (report_data_of(encode_claims(key.spki)), legacy)
    assert parse_quote(key.quote).report_data in bindings


SAMPLE = create_identity(quote_for)


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        attested_key(data)


def test_an_oversized_certificate_is_refused(p384: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(EvidenceFormatError, match="at most"):
        attested_key(bytes(40000))


def test_the_key_does_not_show_in_text(identity: RaTlsIdentity) -> None:
    field = {field.name: field for field in dataclasses.fields(identity)}["key"]
    assert field.repr is False
