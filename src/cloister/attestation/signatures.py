"""Signatures that can be checked without verifying a quote as a whole.

Whoever asks a service for collateral on behalf of strangers needs two of them: one before, so
that only a genuine platform makes him ask, and one after, so that he keeps only what the vendor
signed. Neither replaces anything that verification checks.
"""

from __future__ import annotations

import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral, tee_and_fmspc
from cloister.attestation.dcap import pck_chain
from cloister.attestation.pcs import PlatformKind
from cloister.attestation.supplement import (
    certificates_of,
    require_crl_issuer,
    require_tcb_signer,
    revocation_list,
)
from cloister.errors import CollateralError, QuoteSignatureError
from cloister.sgx.quote import Quote, qe_report_data

_ALGORITHM = ec.ECDSA(hashes.SHA256())


def is_signed(key: PublicKeyTypes, signature: bytes, data: bytes) -> bool:
    """Tell whether an ECDSA-SHA256 signature (r and s, 32 big-endian bytes each) is of ``data``."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), data, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def attestation_key(quote: Quote) -> ec.EllipticCurvePublicKey:
    """Return the key that signed a quote.

    Raises:
        QuoteSignatureError: it is no point of the curve.
    """
    point = b"\x04" + quote.signature.attestation_key
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise QuoteSignatureError("the attestation key is no point of its curve") from error


def require_own_signatures(quote: Quote) -> None:
    """Check that a quote is signed by a key that its PCK certificate vouches for.

    Raises:
        QuoteSignatureError: it is not.
        CertificateChainError: its certificates cannot be read.
    """
    parts = quote.signature
    if not is_signed(attestation_key(quote), parts.signature, quote.signed):
        raise QuoteSignatureError("bad signature of the quote")
    expected = qe_report_data(parts.attestation_key, parts.qe_auth_data)
    if quote.qe_report.report_data != expected:
        raise QuoteSignatureError("the QE vouches for another key")
    pck = pck_chain(parts.certification_data)[0]
    if not is_signed(pck.public_key(), parts.qe_report_signature, parts.qe_report):
        raise QuoteSignatureError("bad signature of the QE report")


def require_signed(collateral: Collateral, anchor: TrustAnchor, kind: PlatformKind) -> None:
    """Check that collateral is of a kind of platform, and every part of it signed under a root.

    Dates are not looked at.

    Raises:
        CollateralError: a part is not by its issuer, or of another kind of platform.
        CertificateChainError: an issuer was not certified for this.
    """
    require_same_kind(collateral, kind)
    require_signed_text(
        "TCB info",
        collateral.tcb_info,
        collateral.tcb_info_signature,
        collateral.tcb_info_issuer_chain,
        anchor,
    )
    require_signed_text(
        "QE identity",
        collateral.qe_identity,
        collateral.qe_identity_signature,
        collateral.qe_identity_issuer_chain,
        anchor,
    )
    require_root_list(collateral.root_ca_crl, anchor)
    require_crl_issuer(collateral.pck_crl_issuer_chain, collateral.pck_crl, anchor)


QE_IDS = {"sgx": "QE", "tdx": "TD_QE"}
"""Which quoting enclave signs for a TEE."""


def require_same_kind(collateral: Collateral, kind: PlatformKind) -> None:
    """Check that every part of collateral is of the kind of platform that was asked for.

    Raises:
        CollateralError: it is of another one, or cannot be read.
    """
    found = tee_and_fmspc(collateral)
    if found != (kind.tee, kind.fmspc):
        raise CollateralError("the TCB info is for another kind of platform")
    if qe_id(collateral.qe_identity) != QE_IDS[kind.tee]:
        raise CollateralError("the QE identity is for another kind of platform")
    if list_issuer(collateral.pck_crl) != kind.ca:
        raise CollateralError("the PCK revocation list is for another kind of platform")


def qe_id(identity: str) -> str:
    """Return which quoting enclave a signed identity is of, e.g. ``QE``.

    Raises:
        CollateralError: it does not say.
    """
    try:
        return str(json.loads(identity)["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CollateralError("collateral: the QE identity is damaged") from error


def list_issuer(crl: bytes) -> str:
    """Return whose PCK certificates a revocation list (DER) is of: ``platform`` or ``processor``.

    Raises:
        CollateralError: it cannot be read.
    """
    name = revocation_list(crl).issuer.rfc4514_string()
    return "platform" if "PCK Platform CA" in name else "processor"


def require_signed_text(
    what: str, text: str, signature: bytes, chain: str, anchor: TrustAnchor
) -> None:
    """Check that TCB info or a QE identity is signed by whom a root certified for it.

    Args:
        what: what errors call it.
        text: exactly what was signed.
        signature: r and s, 32 big-endian bytes each.
        chain: the issuer's certificates, PEM.
        anchor: the root.

    Raises:
        CollateralError: it is not signed by the first certificate of the chain.
        CertificateChainError: the root did not certify that for this.
    """
    require_tcb_signer(chain, anchor, what)
    signer = certificates_of(chain, f"{what}'s")[0]
    if not is_signed(signer.public_key(), signature, text.encode()):
        raise CollateralError(f"bad signature of the {what}")


def require_root_list(crl: bytes, anchor: TrustAnchor) -> None:
    """Check that a root's revocation list (DER) is signed by the root.

    Raises:
        CollateralError: it is not.
    """
    root = anchor.certificate.public_key()
    if not isinstance(root, ec.EllipticCurvePublicKey) or not revocation_list(
        crl
    ).is_signature_valid(root):
        raise CollateralError("the root's revocation list is not by the root")
