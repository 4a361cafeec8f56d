"""What dcap-qvl leaves unchecked (measured on 0.7.0), checked here.

Every signature has been verified by that library before anything here is asked, so that this
module only reads signed texts and certificates again for what the library does not compare:

- whose key signed TCB info and QE identity (the library takes any end-entity certificate that
  leads to the root, also the PCK certificate of some platform, whose owner may have extracted
  its key and could then attest to his own health);
- that revocation lists are not of the future, and who issued the chain behind them;
- versions, types and the order of levels in the JSON;
- the single TCB components of the PCK certificate, where the library compares CPUSVN alone;
- the second half of the QE's report data.

Sources: Intel SGX PCS API, version 4; Intel SGX PCK Certificate and CRL Profile Specification.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral
from cloister.attestation.dcap import pck_chain
from cloister.errors import (
    CertificateChainError,
    CollateralError,
    ExpiredCollateralError,
    QuotingEnclaveError,
)
from cloister.sgx.quote import Quote

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
INTEL_TCB_SIGNER = "Intel SGX TCB Signing"
TCB_INFO_VERSION = 3

_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension)


@dataclasses.dataclass(frozen=True)
class Verified:
    """A quote and its collateral, after dcap-qvl has verified every signature up to ``anchor``.

    Attributes:
        claims: what that library read, as JSON.
        now: the time of verification (aware).
    """

    quote: Quote
    collateral: Collateral
    anchor: TrustAnchor
    claims: dict[str, Any]
    now: datetime.datetime

    @property
    def tcb_info(self) -> dict[str, Any]:
        """The signed TCB info."""
        return _parsed(self.collateral.tcb_info)

    @property
    def qe_identity(self) -> dict[str, Any]:
        """The signed identity of the quoting enclave."""
        return _parsed(self.collateral.qe_identity)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _tcb_signer(verified: Verified) -> str:
    anchor, collateral = verified.anchor, verified.collateral
    require_tcb_signer(collateral.tcb_info_issuer_chain, anchor, "TCB info")
    return require_tcb_signer(collateral.qe_identity_issuer_chain, anchor, "QE identity")


@functools.lru_cache(maxsize=256)
def require_tcb_signer(chain: str, anchor: TrustAnchor, what: str) -> str:
    """Check that the first certificate of a chain (PEM) may sign TCB info and QE identity.

    Raises:
        CertificateChainError: the root did not certify it for this.
    """
    signer = certificates_of(chain, f"{what}'s")[0]
    if not anchor.issued(signer):
        raise CertificateChainError(f"the {what}'s signer was not certified by the root itself")
    if any(extension.oid == SGX_EXTENSION for extension in _extensions(signer)):
        raise CertificateChainError(f"the {what} is signed by a platform's key (PCK)")
    name = signer.subject.rfc4514_string()
    if not anchor.simulated and f"CN={INTEL_TCB_SIGNER}" not in name.split(","):
        raise CertificateChainError(f"the {what} is not signed by {INTEL_TCB_SIGNER}")
    return "certified by the root itself, no platform's key"


def _revocation_lists(verified: Verified) -> str:
    collateral = verified.collateral
    shown = []
    for name, der in (("root", collateral.root_ca_crl), ("PCK", collateral.pck_crl)):
        this_update, next_update = _period(der)
        if verified.now < this_update:
            raise ExpiredCollateralError(f"the {name} revocation list is of the future")
        if next_update is None:
            raise CollateralError(f"the {name} revocation list does not say until when it holds")
        shown.append(f"{name} CRL of {this_update.isoformat()}")
    return ", ".join(shown)


@functools.lru_cache(maxsize=256)
def _period(crl: bytes) -> tuple[datetime.datetime, datetime.datetime | None]:
    parsed = revocation_list(crl)
    return parsed.last_update_utc, parsed.next_update_utc


def _revocation_list_issuer(verified: Verified) -> str:
    collateral = verified.collateral
    return require_crl_issuer(collateral.pck_crl_issuer_chain, collateral.pck_crl, verified.anchor)


@functools.lru_cache(maxsize=256)
def require_crl_issuer(chain: str, crl: bytes, anchor: TrustAnchor) -> str:
    """Check that a revocation list (DER) is by the first certificate of a chain to the root.

    Raises:
        CertificateChainError: it is not.
        CollateralError: it cannot be read.
    """
    certificates = certificates_of(chain, "PCK revocation list's")
    if not anchor.issued(certificates[-1]) or not all(
        TrustAnchor(issuer).issued(certificate)
        for certificate, issuer in itertools.pairwise(certificates)
    ):
        raise CertificateChainError("the PCK revocation list's chain does not lead to the root")
    key = certificates[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not revocation_list(
        crl
    ).is_signature_valid(key):
        raise CertificateChainError("the PCK revocation list is not by the issuer of its chain")
    return "the issuer's chain leads to the root"


def _tcb_info_version(verified: Verified) -> str:
    found = verified.tcb_info.get("version")
    if found != TCB_INFO_VERSION:
        raise CollateralError(f"TCB info of version {found}: its meaning is unknown")
    return str(found)


def _tcb_type(verified: Verified) -> str:
    found = verified.tcb_info.get("tcbType")
    if found != 0:
        raise CollateralError(f"TCB type {found}: its meaning is unknown")
    return str(found)


def _pce_id(verified: Verified) -> str:
    found = bytes(verified.claims["platform"]["pck"]["pce_id"]).hex()
    known = verified.tcb_info.get("pceId")
    if found != str(known).lower():
        raise CollateralError(f"PCE id {found}, the TCB info is for {known}")
    return found


def _tcb_components(verified: Verified) -> str:
    cpu_svn = bytes(verified.claims["platform"]["pck"]["cpu_svn"])
    found = _components(verified.quote.signature.certification_data)
    if found != cpu_svn:
        raise CertificateChainError(
            f"the PCK certificate's TCB components {found.hex()} are not its CPUSVN"
            f" {cpu_svn.hex()}, so that its TCB level is ambiguous"
        )
    return found.hex()


@asn1.sequence
class _Entry:
    """One named value of the SGX extension."""

    oid: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _Tcb:
    oid: x509.ObjectIdentifier
    entries: list[_Entry]


@asn1.sequence
class _SgxExtension:
    """The SGX extension; profile specification, section 1.3."""

    ppid: _Entry
    tcb: _Tcb
    pce_id: _Entry
    fmspc: _Entry
    sgx_type: _Entry
    platform_instance_id: _Entry | None
    configuration: _Entry | None


@functools.lru_cache(maxsize=256)
def _components(certification_data: bytes) -> bytes:
    """Return the SVNs of the 16 TCB components that the PCK certificate lists singly."""
    leaf = pck_chain(certification_data)[0]
    (extension,) = (item for item in _extensions(leaf) if item.oid == SGX_EXTENSION)
    prefix = f"{SGX_EXTENSION.dotted_string}.2."
    try:
        tcb = asn1.decode_der(_SgxExtension, extension.value.public_bytes()).tcb
        values = {entry.oid.dotted_string: entry.value for entry in tcb.entries}
        return bytes(values[f"{prefix}{number}"].parse(int) for number in range(1, 17))
    except (ValueError, KeyError) as error:
        raise CertificateChainError("the PCK certificate's TCB components are damaged") from error


def _qe_levels(verified: Verified) -> str:
    return _require_descending(verified.qe_identity["tcbLevels"])


def _tdx_module_levels(verified: Verified) -> str:
    identities = verified.tcb_info.get("tdxModuleIdentities") or []
    shown = [f"{item['id']}: {_require_descending(item['tcbLevels'])}" for item in identities]
    return "; ".join(shown) or "none"


def _require_descending(levels: list[dict[str, Any]]) -> str:
    found = [level["tcb"]["isvsvn"] for level in levels]
    if found != sorted(found, reverse=True):
        raise CollateralError(f"levels {found} are out of order, the first match would lie")
    return ", ".join(map(str, found))


def _qe_report_data(verified: Verified) -> str:
    if any(verified.quote.qe_report.report_data[32:]):
        raise QuotingEnclaveError("the second half of the QE's report data is not zero")
    return "32 zero bytes after the key's hash"


@dataclasses.dataclass(frozen=True)
class Supplement:
    """One check that dcap-qvl does not make.

    Attributes:
        name: what is looked at.
        expected: what passes.
        found: returns what was found, or raises an :class:`cloister.errors.AttestationError`.
    """

    name: str
    expected: str
    found: Callable[[Verified], str]


SUPPLEMENTS = (
    Supplement("TCB signer", "a key that the root certified for this", _tcb_signer),
    Supplement("revocation lists", "lists that hold now", _revocation_lists),
    Supplement("revocation list issuer", "a chain to the root", _revocation_list_issuer),
    Supplement("TCB info version", str(TCB_INFO_VERSION), _tcb_info_version),
    Supplement("TCB type", "0", _tcb_type),
    Supplement("PCE id", "the same in the PCK certificate and the TCB info", _pce_id),
    Supplement("TCB components", "the bytes of CPUSVN", _tcb_components),
    Supplement("QE identity levels", "in descending order of ISVSVN", _qe_levels),
    Supplement("TDX module levels", "in descending order of ISVSVN", _tdx_module_levels),
    Supplement("QE report data", "32 zero bytes after the key's hash", _qe_report_data),
)


def certificates_of(chain: str, whose: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM chain.

    Raises:
        CertificateChainError: it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(chain.encode())
    except _UNREADABLE as error:
        raise CertificateChainError(f"the {whose} certificate chain cannot be read") from error


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (*_UNREADABLE, x509.UnsupportedGeneralNameType) as error:
        raise CertificateChainError("a certificate's extensions cannot be read") from error


def revocation_list(der: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list.

    Raises:
        CollateralError: it cannot be read.
    """
    try:
        return x509.load_der_x509_crl(der)
    except _UNREADABLE as error:
        raise CollateralError("a revocation list cannot be read") from error
