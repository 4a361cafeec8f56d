"""EPID quotes (versions 1 and 2) as data: the attestation of the first SGX processors.

Source: Intel SGX SDK, ``sgx_quote_t``, and the Attestation Service API, version 4, section
"QUOTE". The signature is encrypted for Intel's service, so that nobody else can verify it; that
service has been retired.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

from cloister.errors import MalformedQuoteError, UnsupportedQuoteError
from cloister.sgx.report import REPORT_BODY_SIZE, ReportBody
from cloister.sgx.structure import Structure

EPID_VERSIONS = (1, 2)
BODY_SIZE = 48 + REPORT_BODY_SIZE
"""Bytes of a quote in front of its signature's length; a service's report repeats them."""

_HEADER = Structure(
    "EPID quote header",
    48,
    {
        "version": (0, "H"),
        "sign_type": (2, "H"),
        "epid_group_id": (4, "4s"),
        "qe_svn": (8, "H"),
        "pce_svn": (10, "H"),
        "xeid": (12, "I"),
        "basename": (16, "32s"),
    },
)


class EpidHeader(NamedTuple):
    """The 48 bytes in front of the report body.

    Attributes:
        sign_type: 0 unlinkable, 1 linkable.
        epid_group_id: little endian, as in the quote.
        basename: what linkable signatures are linkable by; it begins with the service provider's
            id (SPID, 16 bytes).
    """

    version: int
    sign_type: int
    epid_group_id: bytes
    qe_svn: int
    pce_svn: int
    xeid: int
    basename: bytes


@dataclasses.dataclass(frozen=True)
class EpidQuote:
    """A parsed EPID quote; nothing in it is verified.

    Attributes:
        raw: the quote's first 432 bytes, which a service's report repeats.
    """

    raw: bytes = dataclasses.field(repr=False)
    header: EpidHeader

    is_tdx = False

    @functools.cached_property
    def report(self) -> ReportBody:
        """The parsed report body."""
        return ReportBody.unpack(self.raw[48:])

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave chose."""
        return self.report.report_data


def is_epid(data: bytes) -> bool:
    """Tell whether a quote says that it is one of EPID."""
    return int.from_bytes(data[:2], "little") in EPID_VERSIONS and len(data) >= 2


def parse_epid_quote(data: bytes) -> EpidQuote:
    """Take an EPID quote apart.

    Args:
        data: a whole quote, or its first 432 bytes as a service's report repeats them.

    Raises:
        MalformedQuoteError: cut short, or trailing bytes.
        UnsupportedQuoteError: not an EPID quote.
    """
    if not is_epid(data):
        raise UnsupportedQuoteError("not an EPID quote (version 1 or 2)")
    if len(data) < BODY_SIZE:
        raise MalformedQuoteError(f"EPID quote is cut short: {len(data)} bytes, at least 432")
    if len(data) > BODY_SIZE:
        declared = BODY_SIZE + 4 + int.from_bytes(data[BODY_SIZE : BODY_SIZE + 4], "little")
        if len(data) != declared:
            raise MalformedQuoteError(f"EPID quote has {len(data)} bytes, it says {declared}")
    body = data[:BODY_SIZE]
    return EpidQuote(body, EpidHeader(**_HEADER.unpack(body[:48])))
