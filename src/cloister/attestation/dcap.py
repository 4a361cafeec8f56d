"""The one place that calls dcap-qvl: its claims, and its errors as ours.

Measured on dcap-qvl 0.7.0: the policy form of its call gives the richer claims but hides causes,
so that a failure is looked up again with the plain form. That one is asked only why, never
whether.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral
from cloister.attestation.pcs import PlatformKind
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    DebugEnclaveError,
    EnclaveAttributesError,
    ExpiredCollateralError,
    MalformedQuoteError,
    QuoteSignatureError,
    QuotingEnclaveError,
    RevokedError,
    TcbStatusError,
    TdxModuleError,
    UnsupportedQuoteError,
)
from cloister.sgx.quote import Quote
from cloister.text import printable

# The first pattern that is found in the library's text names the cause.
_CAUSES: tuple[tuple[str, type[AttestationError], str], ...] = (
    (r"CertRevoked", RevokedError, "a certificate is on the revocation list"),
    (r"CrlExpired", ExpiredCollateralError, "a revocation list is out of date"),
    (r"CertExpired", ExpiredCollateralError, "a certificate has expired"),
    (r"CertNotValidYet", ExpiredCollateralError, "a certificate is not valid yet"),
    (r"TCBInfo expired", ExpiredCollateralError, "the TCB info is out of date"),
    (r"QE Identity expired", ExpiredCollateralError, "the QE identity is out of date"),
    (r"TCBInfo issue date is in the future", ExpiredCollateralError, "TCB info of the future"),
    (r"QE Identity issue date is in", ExpiredCollateralError, "QE identity of the future"),
    (r"TCB status is invalid: Revoked", RevokedError, "the TCB level is revoked"),
    (r"Fmspc mismatch", CollateralError, "the collateral is for another kind of platform (FMSPC)"),
    (r"Signature is invalid for tcb_info", CollateralError, "bad signature of the TCB info"),
    (r"Signature is invalid for qe_identity", CollateralError, "bad signature of the QE identity"),
    (r"ISV enclave report signature", QuoteSignatureError, "bad signature of the quote"),
    (r"Signature is invalid for qe_report", QuoteSignatureError, "bad signature of the QE report"),
    (r"QE report hash mismatch", QuoteSignatureError, "the QE vouches for another key"),
    (r"Invalid QE auth data", MalformedQuoteError, "QE auth data of the wrong length"),
    (r"QE report validation failed", QuotingEnclaveError, "the QE is in debug mode"),
    (r"QE ISVSVN", QuotingEnclaveError, "the QE is older than any accepted version"),
    (r"QE [A-Z]+ mismatch", QuotingEnclaveError, "not the genuine quoting enclave"),
    (r"TDX module [A-Z]+ mismatch", TdxModuleError, "not the genuine TDX module"),
    (r"TDX module ISVSVN", TcbStatusError, "the TDX module is older than any known version"),
    (r"No TDX module identity", CollateralError, "the collateral does not know the TDX module"),
    (r"No matching (QE )?TCB level", TcbStatusError, "the TCB is below all known levels"),
    (r"Debug mode is enabled", DebugEnclaveError, "the enclave is in debug mode"),
    (r"TD profiling", DebugEnclaveError, "the host can profile the virtual machine"),
    (r"Reserved bits in TD attr", EnclaveAttributesError, "attributes of unknown meaning are set"),
    (r"(SERVTD_EXT|SEPT_VE_DISABLE|TD migration|PKS|KL) is", EnclaveAttributesError,
     "the virtual machine has attributes that it must not have"),
    (r"quote must have version 3", UnsupportedQuoteError, "SGX quotes are of version 3"),
    (r"Unknown QE vendor", UnsupportedQuoteError, "unknown vendor of the quoting enclave"),
    (r"Unsupported DCAP PCK cert format", UnsupportedQuoteError, "no certificate chain in it"),
    (r"Failed to decode quote", MalformedQuoteError, "the quote cannot be decoded"),
    (r"InvalidCrlSignature", CollateralError, "a revocation list is not by its issuer"),
    (r"Failed to parse (root CA|PCK) CRL", CollateralError, "a revocation list cannot be read"),
    (r"UnknownRevocationStatus", CollateralError, "a revocation list of an issuer is missing"),
    (r"Failed to (decode|parse) (TcbInfo|Q[eE]|tcb|qe)", CollateralError, "the JSON is damaged"),
    (r"Unrecognized TCB status", CollateralError, "the collateral has an unknown TCB status"),
    (r"Unsupported (QE Identity|TCB)", CollateralError, "the collateral is of another kind"),
    (r"non-(SGX|TDX) TCB info", CollateralError, "the collateral is of another kind"),
    (r"component count|missing tdxModule", CollateralError, "the JSON is damaged"),
    (r"(Pce|Cpu)_?Svn|Fmspc|Ppid|PceId|DER object|subobject", CertificateChainError,
     "a damaged PCK certificate"),
    (r"certificate|Certificate|UnknownIssuer|Intel extension", CertificateChainError, "bad chain"),
)  # fmt: skip
_SOURCE_LINE = re.compile(r" @\S+\.rs:\d+")
_PEM_CHAIN = re.compile(
    rb"(?:-----BEGIN CERTIFICATE-----[\r\n]"
    rb"[A-Za-z0-9+/=\r\n]+"
    rb"-----END CERTIFICATE-----[\r\n]*){1,5}\0?"
)


def verified_claims(
    quote: bytes, collateral: Collateral, anchor: TrustAnchor, now: int
) -> dict[str, Any]:
    """Verify the quote's whole chain of signatures up to ``anchor`` and return the claims.

    Args:
        quote: the quote.
        collateral: for the quote's FMSPC.
        anchor: the root; its own validity is the caller's to check.
        now: seconds since 1970; all collateral is younger.

    Raises:
        AttestationError: a subclass for each cause.
    """
    if now < 0:
        raise ExpiredCollateralError("nothing holds before 1970")
    material = _material(collateral)
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    try:
        claims = _verifier(anchor.der).verify_with_policy(quote, material, now, policy)
    except ValueError as error:
        raise _explain(quote, material, anchor, now, error) from error
    parsed: dict[str, Any] = json.loads(claims.to_json())
    return parsed


@functools.lru_cache(maxsize=256)
def _material(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    fields = dataclasses.fields(collateral)
    return dcap_qvl.QuoteCollateralV3(**{f.name: getattr(collateral, f.name) for f in fields})


@functools.lru_cache(maxsize=16)
def _verifier(root_der: bytes) -> dcap_qvl.QuoteVerifier:
    return dcap_qvl.QuoteVerifier(root_der)


def _explain(
    quote: bytes,
    material: dcap_qvl.QuoteCollateralV3,
    anchor: TrustAnchor,
    now: int,
    error: ValueError,
) -> AttestationError:
    try:
        dcap_qvl.verify_with_root_ca(quote, material, anchor.der, now)
    except ValueError as detailed:
        error = detailed
    return error_of(str(error))


def error_of(text: str) -> AttestationError:
    """Return our error for dcap-qvl's error text; its own words stay in parentheses."""
    words = printable(" ".join(text.removeprefix("Verification failed: ").split()))
    words = _SOURCE_LINE.sub("", words)
    for pattern, error, meaning in _CAUSES:
        if re.search(pattern, words):
            return error(f"{meaning} ({words})")
    return AttestationError(f"quote verification failed ({words})")


def pck_chain(certification_data: bytes) -> list[x509.Certificate]:
    """Return the certificates of a quote's PEM chain (certification data type 5).

    Raises:
        CertificateChainError: anything but PEM certificates and the one NUL that Intel's library
            leaves at the end.
    """
    if not _PEM_CHAIN.fullmatch(certification_data):
        raise CertificateChainError("the quote's certificate chain is not PEM certificates alone")
    try:
        return x509.load_pem_x509_certificates(certification_data.rstrip(b"\0"))
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateChainError("the quote's certificate chain cannot be read") from error


def kind_of(quote: Quote) -> PlatformKind:
    """Return the kind of platform that the quote's PCK certificate names.

    Raises:
        MalformedQuoteError: it names none.
    """
    return _kind_of_chain(quote.signature.certification_data, quote.is_tdx)


@functools.lru_cache(maxsize=256)
def _kind_of_chain(certification_data: bytes, is_tdx: bool) -> PlatformKind:
    # The FMSPC and the name of the CA are in the leaf; a platform shows the same one every time.
    try:
        fmspc = dcap_qvl.parse_pck_extension_from_pem(certification_data).fmspc
        issuer = x509.load_pem_x509_certificate(certification_data).tbs_certificate_bytes
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedQuoteError("the quote's PCK certificate names no platform") from error
    ca = "platform" if b"PCK Platform CA" in issuer else "processor"
    return PlatformKind("tdx" if is_tdx else "sgx", fmspc.hex().upper(), ca)


def as_utc(seconds: int) -> datetime.datetime:
    """Return an aware time from seconds since 1970."""
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)
