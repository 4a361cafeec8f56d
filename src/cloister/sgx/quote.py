"""Quotes as data: SGX version 3 and 4/5, TDX versions 4 and 5, recognition of EPID.

Source: Intel SGX ECDSA QuoteLibReference, appendix A (version 3); Intel TDX DCAP Quoting Library
API, appendix A (versions 4 and 5). All numbers are little endian, signatures and public keys are
raw big-endian pairs of 32 bytes. Parsing judges nothing: an attacker wrote every byte until
:mod:`cloister.attestation` has verified it. It is strict about lengths: a quote is exactly as
long as it says.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from typing import NamedTuple

from cloister.errors import MalformedQuoteError, UnsupportedQuoteError
from cloister.sgx.report import REPORT_BODY_SIZE, REPORT_DATA_SIZE, ReportBody
from cloister.sgx.structure import Structure

HEADER_SIZE = 48
MAX_QUOTE_SIZE = 16384
"""Longest quote that is looked at, in bytes; real ones have 4,000 to 5,000."""

INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
ECDSA_P256 = 2
TEE_SGX = 0x00
TEE_TDX = 0x81
CERTIFICATION_PEM_CHAIN = 5
CERTIFICATION_QE_REPORT = 6
CERTIFICATION_TYPES = {
    1: "PPID in plain text",
    2: "PPID under RSA-2048",
    3: "PPID under RSA-3072",
    4: "PCK certificate alone",
    5: "PCK certificate chain",
    6: "QE report",
    7: "platform manifest",
}
"""What the certification data of a quote can be."""

_HEADER = Structure(
    "quote header",
    HEADER_SIZE,
    {
        "version": (0, "H"),
        "attestation_key_type": (2, "H"),
        "tee_type": (4, "I"),
        "qe_svn": (8, "H"),
        "pce_svn": (10, "H"),
        "qe_vendor_id": (12, "16s"),
        "user_data": (28, "20s"),
    },
)
_TD_10_FIELDS = {
    "tee_tcb_svn": (0, "16s"),
    "mr_seam": (16, "48s"),
    "mr_signer_seam": (64, "48s"),
    "seam_attributes": (112, "8s"),
    "td_attributes": (120, "Q"),
    "xfam": (128, "8s"),
    "mr_td": (136, "48s"),
    "mr_config_id": (184, "48s"),
    "mr_owner": (232, "48s"),
    "mr_owner_config": (280, "48s"),
    "rtmr0": (328, "48s"),
    "rtmr1": (376, "48s"),
    "rtmr2": (424, "48s"),
    "rtmr3": (472, "48s"),
    "report_data": (520, "64s"),
}
_TD_10 = Structure("TD report 1.0", 584, _TD_10_FIELDS)
_TD_15 = Structure(
    "TD report 1.5",
    648,
    {**_TD_10_FIELDS, "tee_tcb_svn2": (584, "16s"), "mr_service_td": (600, "48s")},
)
# Version 5 names the body in front of it: type -> size.
_V5_TYPE_SIZE = 6
_V5_BODY_SIZES = {1: REPORT_BODY_SIZE, 2: _TD_10.size, 3: _TD_15.size}


class QuoteHeader(NamedTuple):
    """The 48 bytes in front of every quote."""

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes

    def pack(self) -> bytes:
        """Return the 48 bytes."""
        return _HEADER.pack(self._asdict())


class TdReport(NamedTuple):
    """The body of a TDX quote: what the TDX module says about a virtual machine."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def debug(self) -> bool:
        """Whether the host can read the virtual machine's memory (TUD bits, 0 to 7)."""
        return bool(self.td_attributes & 0xFF)

    @classmethod
    def unpack(cls, data: bytes) -> TdReport:
        """Read a TD report of 584 (1.0) or 648 (1.5) bytes."""
        return cls(**(_TD_15 if len(data) == _TD_15.size else _TD_10).unpack(data))

    def pack(self) -> bytes:
        """Return the report: 648 bytes if the fields of 1.5 are there, else 584."""
        structure = _TD_10 if self.tee_tcb_svn2 is None else _TD_15
        values = self._asdict()
        return structure.pack({name: value for name, value in values.items() if value is not None})


class QuoteSignature(NamedTuple):
    """Everything behind the body: the attestation key, who certifies it, and its signature."""

    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes


@dataclasses.dataclass(frozen=True)
class Quote:
    """A parsed ECDSA quote; nothing in it is verified."""

    raw: bytes = dataclasses.field(repr=False)
    header: QuoteHeader
    body: bytes = dataclasses.field(repr=False)
    signature: QuoteSignature = dataclasses.field(repr=False)

    @property
    def is_tdx(self) -> bool:
        """Whether the body is a TD report rather than an SGX report body."""
        return self.header.tee_type == TEE_TDX

    @property
    def signed(self) -> bytes:
        """The bytes that the attestation key signed: everything before the signature's length."""
        typed = _V5_TYPE_SIZE if self.header.version == 5 else 0
        return self.raw[: HEADER_SIZE + typed + len(self.body)]

    @functools.cached_property
    def report(self) -> ReportBody | TdReport:
        """The parsed body."""
        return TdReport.unpack(self.body) if self.is_tdx else ReportBody.unpack(self.body)

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave chose."""
        return self.report.report_data

    @property
    def qe_report(self) -> ReportBody:
        """The parsed report of the quoting enclave."""
        return ReportBody.unpack(self.signature.qe_report)


class _Reader:
    """Reads forward through hostile bytes; every step is bounded."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._position = 0
        self._what = what

    def take(self, size: int, field: str) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise MalformedQuoteError(
                f"{self._what} is cut short: {field} needs {size} bytes,"
                f" {len(self._data) - self._position} are left"
            )
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def number(self, code: str, field: str) -> int:
        packed = struct.Struct("<" + code)
        value: int = packed.unpack(self.take(packed.size, field))[0]
        return value

    def finish(self) -> None:
        if self.rest:
            raise MalformedQuoteError(f"{self._what} has {len(self.rest)} bytes after its end")

    @property
    def rest(self) -> bytes:
        return self._data[self._position :]


def parse_quote(data: bytes) -> Quote:
    """Take a quote apart.

    Args:
        data: the quote, nothing before and nothing after it. Only a TDX quote may be followed by
            zero bytes: its generation service hands out a buffer of fixed size.

    Raises:
        MalformedQuoteError: cut short, trailing bytes, a length that does not fit.
        UnsupportedQuoteError: EPID, an unknown version, key type or TEE.
    """
    if len(data) > MAX_QUOTE_SIZE:
        raise MalformedQuoteError(f"quote has {len(data)} bytes, at most {MAX_QUOTE_SIZE}")
    reader = _Reader(data, "quote")
    header = parse_header(reader.take(HEADER_SIZE, "header"))
    body = reader.take(_body_size(header, reader), "body")
    signature = reader.take(reader.number("I", "signature length"), "signature data")
    padding = reader.rest if header.tee_type == TEE_TDX else b""
    if not padding or any(padding):
        reader.finish()
    parse = _parse_signature_v3 if header.version == 3 else _parse_signature_v4
    raw = data[: len(data) - len(padding)]
    return Quote(raw=raw, header=header, body=body, signature=parse(signature))


def parse_header(data: bytes) -> QuoteHeader:
    """Read the 48-byte header and refuse what is not an ECDSA quote of SGX or TDX.

    Raises:
        MalformedQuoteError: fewer than 48 bytes.
        UnsupportedQuoteError: EPID, an unknown version, key type or TEE.
    """
    if len(data) < HEADER_SIZE:
        raise MalformedQuoteError(f"quote is cut short: {len(data)} bytes, the header has 48")
    header = QuoteHeader(**_HEADER.unpack(data[:HEADER_SIZE]))
    if header.version in (1, 2):
        raise UnsupportedQuoteError(
            f"quote version {header.version} is EPID, whose service Intel has retired",
            hint="use DCAP (ECDSA) attestation, whose quotes are of version 3 and above; a report"
            " that the service gave in its time can be verified: cloister quote verify"
            " --ias-report FILE",
        )
    if header.version not in (3, 4, 5):
        raise UnsupportedQuoteError(f"quote version {header.version}, expected 3, 4 or 5")
    if header.attestation_key_type != ECDSA_P256:
        raise UnsupportedQuoteError(
            f"quote attestation key type {header.attestation_key_type}, expected 2 (ECDSA P-256)"
        )
    allowed = (TEE_SGX,) if header.version == 3 else (TEE_SGX, TEE_TDX)
    if header.tee_type not in allowed:
        raise UnsupportedQuoteError(
            f"quote version {header.version} has TEE type {header.tee_type:#x},"
            f" expected {' or '.join(hex(tee) for tee in allowed)}"
        )
    return header


def _body_size(header: QuoteHeader, reader: _Reader) -> int:
    if header.version < 5:
        return _TD_10.size if header.tee_type == TEE_TDX else REPORT_BODY_SIZE
    kind = reader.number("H", "body type")
    size = reader.number("I", "body size")
    if _V5_BODY_SIZES.get(kind) != size or (kind == 1) != (header.tee_type == TEE_SGX):
        raise UnsupportedQuoteError(
            f"quote body type {kind} with {size} bytes and TEE type {header.tee_type:#x}"
            " is not a combination that is known"
        )
    return size


def _parse_signature_v3(data: bytes) -> QuoteSignature:
    reader = _Reader(data, "quote signature data")
    signature = reader.take(64, "signature")
    key = reader.take(64, "attestation key")
    return _parse_certification(reader, signature, key)


def _parse_signature_v4(data: bytes) -> QuoteSignature:
    outer = _Reader(data, "quote signature data")
    signature = outer.take(64, "signature")
    key = outer.take(64, "attestation key")
    kind = outer.number("H", "certification data type")
    if kind != CERTIFICATION_QE_REPORT:
        raise UnsupportedQuoteError(
            f"quote certification data type {kind}, expected {CERTIFICATION_QE_REPORT}"
        )
    inner = outer.take(outer.number("I", "certification data size"), "certification data")
    outer.finish()
    return _parse_certification(_Reader(inner, "QE certification data"), signature, key)


def _parse_certification(reader: _Reader, signature: bytes, key: bytes) -> QuoteSignature:
    parsed = QuoteSignature(
        signature=signature,
        attestation_key=key,
        qe_report=reader.take(REPORT_BODY_SIZE, "QE report"),
        qe_report_signature=reader.take(64, "QE report signature"),
        qe_auth_data=reader.take(reader.number("H", "QE auth data size"), "QE auth data"),
        certification_type=reader.number("H", "certification data type"),
        certification_data=reader.take(
            reader.number("I", "certification data size"), "certification data"
        ),
    )
    reader.finish()
    return parsed


def pack_quote_v3(signed: bytes, signature: QuoteSignature) -> bytes:
    """Join the 432 signed bytes (header and report body) and the signature data of a v3 quote."""
    certified = b"".join(
        (
            signature.signature,
            signature.attestation_key,
            signature.qe_report,
            signature.qe_report_signature,
            struct.pack("<H", len(signature.qe_auth_data)),
            signature.qe_auth_data,
            struct.pack("<HI", signature.certification_type, len(signature.certification_data)),
            signature.certification_data,
        )
    )
    return signed + struct.pack("<I", len(certified)) + certified


def qe_report_data(attestation_key: bytes, qe_auth_data: bytes) -> bytes:
    """Return the 64 report data bytes by which a quoting enclave vouches for its key."""
    return hashlib.sha256(attestation_key + qe_auth_data).digest() + bytes(REPORT_DATA_SIZE - 32)
