"""The simulated manufacturer: a root CA, a PCK CA, a TCB signer, and the certificates they issue.

Every subject name says SIMULATED. The PCK certificate carries the SGX extension of "Intel SGX PCK
Certificate and Certificate Revocation List Profile Specification", section 1.3. All keys are
ECDSA P-256, all signatures SHA-256, as that profile demands.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

SGX_EXTENSION = "1.2.840.113741.1.13.1"
ROOT_NOT_AFTER = datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc)
CERTIFICATE_LIFETIME = datetime.timedelta(days=7 * 365)

ROOT_NAME = "Cloister SIMULATED SGX Root CA"
PCK_CA_NAME = "Cloister SIMULATED SGX PCK Processor CA"
PCK_NAME = "Cloister SIMULATED SGX PCK Certificate"
TCB_SIGNER_NAME = "Cloister SIMULATED SGX TCB Signing"

PrivateKey = ec.EllipticCurvePrivateKey


@dataclasses.dataclass(frozen=True)
class Authority:
    """The manufacturer's keys and its root certificate."""

    root_key: PrivateKey = dataclasses.field(repr=False)
    pck_ca_key: PrivateKey = dataclasses.field(repr=False)
    tcb_signer_key: PrivateKey = dataclasses.field(repr=False)
    root: x509.Certificate


class PckIdentity(NamedTuple):
    """What a PCK certificate says about its device."""

    ppid: bytes
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    fmspc: bytes


def make_root(key: PrivateKey, *, not_before: datetime.datetime) -> x509.Certificate:
    """Return the self-signed root certificate; its name ends with a part of its key's digest."""
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    name = _name(f"{ROOT_NAME} {digest[:4].hex()}")
    builder = _builder(name, name, key, not_before, ROOT_NOT_AFTER)
    return _as_ca(builder, path_length=1).sign(key, hashes.SHA256())


def issue_pck_ca(authority: Authority, *, not_before: datetime.datetime) -> x509.Certificate:
    """Return the certificate of the CA that issues PCK certificates."""
    not_after = not_before + 2 * CERTIFICATE_LIFETIME
    builder = _builder(
        _name(PCK_CA_NAME), authority.root.subject, authority.pck_ca_key, not_before, not_after
    )
    builder = _as_ca(builder, path_length=0)
    return _issued_by(builder, authority.root).sign(authority.root_key, hashes.SHA256())


def issue_tcb_signer(authority: Authority, *, not_before: datetime.datetime) -> x509.Certificate:
    """Return the certificate of the key that signs TCB info and QE identity."""
    not_after = not_before + CERTIFICATE_LIFETIME
    builder = _builder(
        _name(TCB_SIGNER_NAME),
        authority.root.subject,
        authority.tcb_signer_key,
        not_before,
        not_after,
    )
    builder = _as_end_entity(builder)
    return _issued_by(builder, authority.root).sign(authority.root_key, hashes.SHA256())


def issue_pck(
    authority: Authority,
    pck_ca: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    identity: PckIdentity,
    *,
    not_before: datetime.datetime,
) -> x509.Certificate:
    """Return the certificate of a device's provisioning certification key."""
    not_after = not_before + CERTIFICATE_LIFETIME
    builder = _builder(_name(PCK_NAME), pck_ca.subject, key, not_before, not_after)
    builder = _as_end_entity(builder).add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), sgx_extension(identity)),
        critical=False,
    )
    return _issued_by(builder, pck_ca).sign(authority.pck_ca_key, hashes.SHA256())


def issue_crl(
    issuer: x509.Certificate,
    key: PrivateKey,
    *,
    revoked: Iterable[int],
    this_update: datetime.datetime,
    next_update: datetime.datetime,
) -> bytes:
    """Return a DER revocation list of the serial numbers ``revoked``."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(_authority_key(issuer), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(this_update).build())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def chain_pem(*certificates: x509.Certificate) -> str:
    """Return the certificates as one PEM text, in the order given."""
    return "".join(item.public_bytes(Encoding.PEM).decode() for item in certificates)


def sgx_extension(identity: PckIdentity) -> bytes:
    """Return the DER value of the SGX extension: a SEQUENCE of SEQUENCE{OID, value}."""
    tcb = [
        *((f"2.{number}", _integer(svn)) for number, svn in enumerate(identity.cpu_svn, start=1)),
        ("2.17", _integer(identity.pce_svn)),
        ("2.18", _octets(identity.cpu_svn)),
    ]
    entries = [
        ("1", _octets(identity.ppid)),
        ("2", _sequence(*(_entry(oid, value) for oid, value in tcb))),
        ("3", _octets(identity.pce_id)),
        ("4", _octets(identity.fmspc)),
        ("5", _tlv(0x0A, b"\0")),  # SGX type: standard
    ]
    return _sequence(*(_entry(oid, value) for oid, value in entries))


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Cloister SIMULATED"),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey | ec.EllipticCurvePublicKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(min(not_after, ROOT_NOT_AFTER))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _as_ca(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    return builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)


def _as_end_entity(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    usage = _key_usage(digital_signature=True)
    return builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)


def _issued_by(
    builder: x509.CertificateBuilder, issuer: x509.Certificate
) -> x509.CertificateBuilder:
    return builder.add_extension(_authority_key(issuer), critical=False)


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def derive_private_key(seed: bytes) -> PrivateKey:
    """Return the P-256 key that belongs to a secret seed, always the same one.

    The scalar is 384 bits of SHA-384 output reduced modulo the group order, so that its bias is
    below 2**-120 (NIST SP 800-56A rev. 3, 5.6.1.2.1).
    """
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    wide = int.from_bytes(hashlib.sha384(b"cloister simulated P-256 key" + seed).digest(), "big")
    return ec.derive_private_key(1 + wide % (order - 1), ec.SECP256R1())


def _entry(suffix: str, value: bytes) -> bytes:
    oid = x509.ObjectIdentifier(f"{SGX_EXTENSION}.{suffix}")
    return _sequence(_oid(oid), value)


def _oid(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *rest = (int(arc) for arc in oid.dotted_string.split("."))
    content = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        content.extend(reversed(groups))
    return _tlv(0x06, bytes(content))


def _sequence(*items: bytes) -> bytes:
    return _tlv(0x30, b"".join(items))


def _octets(value: bytes) -> bytes:
    return _tlv(0x04, value)


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
