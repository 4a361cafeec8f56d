"""TLS certificates for a key server: a CA of its own, and one server certificate under it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.errors import InputError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
BACKDATE = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class ServerCertificates:
    """PEM texts.

    The CA's private key is not among them: it signs once and is forgotten, so that nobody can
    ever make another server that the enclaves believe.

    Attributes:
        ca: certificate that enclaves are given (``SECRET_PROVISION_CA_CHAIN_PATH``).
        certificate: the server's certificate.
        key: the server's private key.
    """

    ca: bytes
    certificate: bytes
    key: bytes = dataclasses.field(repr=False)


def make_server_certificates(
    hosts: Sequence[str], *, now: datetime.datetime, lifetime: datetime.timedelta
) -> ServerCertificates:
    """Make a CA and a server certificate for names or addresses (ECDSA P-256).

    Args:
        hosts: DNS names or IP addresses under which enclaves reach the server.
        now: time of issue (aware).
        lifetime: of both certificates.

    Raises:
        InputError: no host, or a name that no certificate can carry.
    """
    if not hosts:
        raise InputError("a server certificate needs at least one host name")
    names = [_general_name(host) for host in hosts]
    not_before = now.replace(microsecond=0) - BACKDATE
    period = (not_before, now.replace(microsecond=0) + lifetime)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name(f"Cloister key server CA for {hosts[0]}")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), period)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name(hosts[0]), ca_name, key.public_key(), period)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    return ServerCertificates(
        ca=ca.public_bytes(Encoding.PEM),
        certificate=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    period: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(period[0])
        .not_valid_after(period[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    # A common name holds at most 64 characters (RFC 5280, upper bounds); the SAN has it whole.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _DNS_NAME.fullmatch(host) or len(host) > 253:
        raise InputError(
            f"host {host!r}: not a DNS name or IP address that a certificate can carry",
            hint="write international names in their ASCII form (xn--...)",
        )
    return x509.DNSName(host)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
