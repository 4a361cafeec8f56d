"""What dcap-qvl leaves unchecked, and what it demands of certificates, lists and JSON.

Each test changes one thing and signs it with the right key, so that only that one thing is wrong.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.attestation import Collateral, TrustAnchor
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    ExpiredCollateralError,
    MalformedQuoteError,
    RevokedError,
    UnsupportedQuoteError,
)
from cloister.platforms.simulated import authority as ca
from cloister.platforms.simulated.collateral import PckChain, sign_raw
from cloister.sgx.quote import pack_quote_v3, parse_quote, qe_report_data
from worlds import World, with_chain

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
SGX_OID = x509.ObjectIdentifier(ca.SGX_EXTENSION)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("supplement") / "device", NOW)


def with_fields(world: World, **fields: str | bytes) -> Collateral:
    changes: dict[str, Any] = fields
    return dataclasses.replace(world.collateral(), **changes)


# --- who signs TCB info and QE identity ---------------------------------------------------------


@pytest.mark.parametrize("what", ["tcb_info", "qe_identity"])
def test_a_platform_cannot_attest_to_its_own_health(world: World, what: str) -> None:
    """The key of one broken platform would otherwise vouch for every platform."""
    certified = world.certified
    text = getattr(world.collateral(), what)
    forged: dict[str, str | bytes] = {
        f"{what}_signature": sign_raw(certified.device.pck_key, text.encode()),
        f"{what}_issuer_chain": certified.chain.to_pem(),
    }
    with pytest.raises(CertificateChainError, match="signer"):
        world.verify(collateral=with_fields(world, **forged)).require()


def signed_by(world: World, certificate: x509.Certificate, key: ca.PrivateKey) -> Collateral:
    text = world.collateral().tcb_info
    return with_fields(
        world,
        tcb_info_signature=sign_raw(key, text.encode()),
        tcb_info_issuer_chain=ca.chain_pem(certificate, world.certified.chain.root),
    )


def test_not_even_one_that_the_root_certified_itself(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    extension = x509.UnrecognizedExtension(SGX_OID, good_extension(world))
    certificate = issue(world, key.public_key(), extension, by_root=True)
    with pytest.raises(CertificateChainError, match="platform's key"):
        world.verify(collateral=signed_by(world, certificate, key)).require()


def test_a_ca_cannot_sign_tcb_info(world: World) -> None:
    device, chain = world.certified.device, world.certified.chain
    for certificate, key in (
        (chain.root, device.authority.root_key),
        (chain.pck_ca, device.authority.pck_ca_key),
    ):
        with pytest.raises(AttestationError):
            world.verify(collateral=signed_by(world, certificate, key)).require()


# --- revocation lists ---------------------------------------------------------------------------


def crl(world: World, whose: str, **changes: Any) -> dict[str, bytes]:
    chain, authority = world.certified.chain, world.certified.device.authority
    issuer, key, field = {
        "root": (chain.root, authority.root_key, "root_ca_crl"),
        "PCK": (chain.pck_ca, authority.pck_ca_key, "pck_crl"),
    }[whose]
    values: dict[str, Any] = {"revoked": [], "this_update": NOW - DAY, "next_update": NOW + DAY}
    return {field: ca.issue_crl(issuer, key, **(values | changes))}


@pytest.mark.parametrize("whose", ["root", "PCK"])
def test_a_list_of_the_future_is_refused(world: World, whose: str) -> None:
    changed = crl(world, whose, this_update=NOW + DAY, next_update=NOW + 2 * DAY)
    with pytest.raises(ExpiredCollateralError, match=f"{whose} revocation list is of the future"):
        world.verify(collateral=with_fields(world, **changed)).require()


@pytest.mark.parametrize("whose", ["root", "PCK"])
def test_a_list_of_the_past_is_refused(world: World, whose: str) -> None:
    changed = crl(world, whose, this_update=NOW - 2 * DAY, next_update=NOW - DAY)
    with pytest.raises(ExpiredCollateralError, match="out of date"):
        world.verify(collateral=with_fields(world, **changed)).require()


@pytest.mark.parametrize("which", ["CA", "signer", "root"])
def test_every_certificate_can_be_revoked(world: World, which: str) -> None:
    collateral = world.collateral()
    signer = x509.load_pem_x509_certificate(collateral.tcb_info_issuer_chain.encode())
    chain = world.certified.chain
    serial = {"CA": chain.pck_ca, "signer": signer, "root": chain.root}[which].serial_number
    changed: dict[str, Any] = crl(world, "root", revoked=[serial])
    with pytest.raises(RevokedError):
        world.verify(collateral=dataclasses.replace(collateral, **changed)).require()


@pytest.mark.parametrize("field", ["root_ca_crl", "pck_crl"])
@pytest.mark.parametrize("kind", ["empty", "junk", "PEM", "other issuer's"])
def test_lists_that_cannot_be_read_are_refused(world: World, field: str, kind: str) -> None:
    collateral = world.collateral()
    other = {"root_ca_crl": "pck_crl", "pck_crl": "root_ca_crl"}[field]
    value = {
        "empty": b"",
        "junk": b"junk",
        "PEM": x509.load_der_x509_crl(getattr(collateral, field)).public_bytes(Encoding.PEM),
        "other issuer's": getattr(collateral, other),
    }[kind]
    with pytest.raises(CollateralError):
        world.verify(collateral=with_fields(world, **{field: value})).require()


@pytest.mark.parametrize("kind", ["empty", "junk", "no root", "another CA", "another world's"])
def test_the_chain_behind_a_list_must_lead_to_the_root(
    world: World, tmp_path: Path, kind: str
) -> None:
    chain, authority = world.certified.chain, world.certified.device.authority
    other = dataclasses.replace(authority, pck_ca_key=ec.generate_private_key(ec.SECP256R1()))
    text = {
        "empty": "",
        "junk": "junk",
        "no root": ca.chain_pem(chain.pck, chain.root),
        "another CA": ca.chain_pem(ca.issue_pck_ca(other, not_before=NOW - DAY), chain.root),
        "another world's": World(tmp_path / "x", NOW).collateral().pck_crl_issuer_chain,
    }[kind]
    with pytest.raises(CertificateChainError, match="revocation list"):
        world.verify(collateral=with_fields(world, pck_crl_issuer_chain=text)).require()


# --- the JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 4, 5])
def test_only_the_known_version_of_tcb_info_is_read(world: World, version: int) -> None:
    with pytest.raises(CollateralError):
        world.verify(collateral=world.edited("tcb_info", version=version)).require()


@pytest.mark.parametrize("version", [1, 3])
def test_only_the_known_version_of_the_qe_identity_is_read(world: World, version: int) -> None:
    with pytest.raises(CollateralError):
        world.verify(collateral=world.edited("qe_identity", version=version)).require()


@pytest.mark.parametrize(
    ("field", "value"), [("tcb_info", "TDX"), ("tcb_info", "x"), ("qe_identity", "QVE")]
)
def test_json_of_another_kind_is_refused(world: World, field: str, value: str) -> None:
    with pytest.raises(CollateralError, match="another kind"):
        world.verify(collateral=world.edited(field, id=value)).require()


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_no_member_of_the_json_may_be_missing(world: World, field: str) -> None:
    text = getattr(world.collateral(), field)
    names = list(json.loads(text))
    for missing in names:
        value = {name: part for name, part in json.loads(text).items() if name != missing}
        changed = json.dumps(value)
        key = world.certified.device.authority.tcb_signer_key
        fields: dict[str, str | bytes] = {
            field: changed,
            f"{field}_signature": sign_raw(key, changed.encode()),
        }
        with pytest.raises(CollateralError):
            world.verify(collateral=with_fields(world, **fields)).require()


def test_text_that_is_no_text_is_refused(world: World) -> None:
    data = json.dumps(world.collateral().to_dict() | {"tcb_info": "\ud800"})
    with pytest.raises(CollateralError, match="tcb_info"):
        Collateral.from_json(data)


def test_a_clock_before_1970_is_refused(world: World) -> None:
    root = ca.make_root(
        world.certified.device.authority.root_key,
        not_before=datetime.datetime(1955, 1, 1, tzinfo=datetime.timezone.utc),
    )
    quote = with_chain(world.quote(), world.certified.chain, root)
    then = datetime.datetime(1960, 1, 1, tzinfo=datetime.timezone.utc)
    with pytest.raises(ExpiredCollateralError):
        world.verify(quote, anchors=[TrustAnchor(root)], now=then).require()


# --- the PCK certificate ------------------------------------------------------------------------


def good_extension(world: World) -> bytes:
    return ca.sgx_extension(world.certified.device.pck_identity)


def issue(
    world: World,
    key: ec.EllipticCurvePublicKey,
    *extensions: x509.ExtensionType,
    critical: bool = False,
    by_root: bool = False,
    period: tuple[datetime.datetime, datetime.datetime] = (NOW - DAY, NOW + DAY),
    digest: hashes.SHA256 | hashes.SHA384 | None = None,
) -> x509.Certificate:
    """Return an end-entity certificate with nothing but ``extensions``."""
    chain, authority = world.certified.chain, world.certified.device.authority
    issuer, signer = (
        (chain.root, authority.root_key) if by_root else (chain.pck_ca, authority.pck_ca_key)
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED")])
    builder = x509.CertificateBuilder(issuer.subject, name, key, 77, *period)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, digest or hashes.SHA256())


def judge_pck(world: World, *extensions: x509.ExtensionType, **how: Any) -> None:
    """Verify a quote whose PCK certificate has the device's key and these extensions."""
    certified = world.certified
    pck = issue(world, certified.device.pck_key.public_key(), *extensions, **how)
    chain = PckChain(pck, certified.chain.pck_ca, certified.chain.root)
    world.verify(with_chain(world.quote(), chain, chain.root)).require()


def sgx(value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(SGX_OID, value)


def test_nothing_but_the_sgx_extension_is_needed(world: World) -> None:
    judge_pck(world, sgx(good_extension(world)))


@pytest.mark.parametrize(
    "period", [(NOW - 2 * DAY, NOW - DAY), (NOW + DAY, NOW + 2 * DAY)], ids=["past", "future"]
)
def test_certificates_out_of_their_time_are_refused(world: World, period: Any) -> None:
    with pytest.raises(ExpiredCollateralError, match="certificate"):
        judge_pck(world, sgx(good_extension(world)), period=period)


@pytest.mark.parametrize("suffix", ["1", "2", "3", "4", "5", "2.1", "2.16", "2.17", "2.18"])
def test_no_value_of_the_sgx_extension_may_be_missing(world: World, suffix: str) -> None:
    oid = ca._oid(x509.ObjectIdentifier(f"{ca.SGX_EXTENSION}.{suffix}"))
    unknown = ca._oid(x509.ObjectIdentifier(f"{ca.SGX_EXTENSION[:-1]}9.{suffix}"))
    value = good_extension(world)
    assert value.count(oid) == 1
    with pytest.raises((CertificateChainError, MalformedQuoteError)):
        judge_pck(world, sgx(value.replace(oid, unknown)))


def test_components_that_are_not_the_cpusvn_are_refused(world: World) -> None:
    device = world.certified.device
    svn = device.pck_identity.cpu_svn
    other = device.pck_identity._replace(cpu_svn=bytes((svn[0] - 1,)) + svn[1:])
    mixed = ca.sgx_extension(other).replace(other.cpu_svn, svn)
    with pytest.raises(CertificateChainError, match="ambiguous"):
        judge_pck(world, sgx(mixed))


@pytest.mark.parametrize("value", [b"", b"\x30\x00", b"junk", b"\x30\x80\x00\x00"])
def test_an_sgx_extension_that_is_none_is_refused(world: World, value: bytes) -> None:
    with pytest.raises((CertificateChainError, MalformedQuoteError)):
        judge_pck(world, sgx(value))


def test_a_pck_certificate_without_the_extension_is_refused(world: World) -> None:
    with pytest.raises((CertificateChainError, MalformedQuoteError)):
        judge_pck(world)


@pytest.mark.parametrize(
    "how", [{"critical": True}, {"digest": hashes.SHA384()}], ids=["critical", "SHA-384"]
)
def test_certificates_of_another_form_are_refused(world: World, how: dict[str, Any]) -> None:
    with pytest.raises(CertificateChainError):
        judge_pck(world, sgx(good_extension(world)), **how)


def test_certificates_for_another_use_are_refused(world: World) -> None:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    with pytest.raises(CertificateChainError):
        judge_pck(world, sgx(good_extension(world)), usage)


def test_the_order_of_the_chain_counts(world: World) -> None:
    chain = world.certified.chain
    swapped = PckChain(chain.pck, chain.root, chain.pck_ca)
    with pytest.raises(AttestationError):
        world.verify(with_chain(world.quote(), swapped, swapped.root)).require()


def test_a_leaf_cannot_certify_another(world: World) -> None:
    """Whoever has one PCK key would otherwise make certificates for every FMSPC."""
    certified = world.certified
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED")])
    forged = (
        x509.CertificateBuilder(
            certified.chain.pck.subject, name, key.public_key(), 78, NOW - DAY, NOW + DAY
        )
        .add_extension(sgx(good_extension(world)), critical=False)
        .sign(certified.device.pck_key, hashes.SHA256())
    )
    quote = world.quote()
    parsed = parse_quote(quote)
    qe_report = parsed.signature.qe_report
    chain = ca.chain_pem(forged, certified.chain.pck, certified.chain.pck_ca, certified.chain.root)
    signature = parsed.signature._replace(
        qe_report_signature=sign_raw(key, qe_report),
        certification_data=chain.encode(),
    )
    with pytest.raises(AttestationError):
        world.verify(pack_quote_v3(quote[:432], signature)).require()


# --- the quote ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 6, 7, 99])
@pytest.mark.parametrize("size", [0, 36, 404, 4000])
def test_certification_data_that_is_no_chain_has_its_own_error(
    world: World, kind: int, size: int
) -> None:
    quote = world.quote()
    signature = parse_quote(quote).signature._replace(
        certification_type=kind, certification_data=bytes(size)
    )
    with pytest.raises(UnsupportedQuoteError, match=f"type {kind} ") as caught:
        world.verify(pack_quote_v3(quote[:432], signature)).require()
    assert "PCCS" in str(caught.value.hint)


def test_another_vendors_quoting_enclave_has_its_own_error(world: World) -> None:
    quote = bytearray(world.quote())
    quote[12:28] = b"another vendor's"
    with pytest.raises(UnsupportedQuoteError, match="vendor"):
        world.verify(bytes(quote)).require()


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_qe_auth_data_of_another_size_is_refused(world: World, size: int) -> None:
    quote = world.quote()
    signature = parse_quote(quote).signature
    auth_data = bytes(size)
    body = bytearray(signature.qe_report)
    body[320:384] = qe_report_data(signature.attestation_key, auth_data)
    changed = signature._replace(
        qe_auth_data=auth_data,
        qe_report=bytes(body),
        qe_report_signature=sign_raw(world.certified.device.pck_key, bytes(body)),
    )
    with pytest.raises(MalformedQuoteError, match="length"):
        world.verify(pack_quote_v3(quote[:432], changed)).require()
