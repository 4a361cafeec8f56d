"""Quotes: real ones of SGX and TDX against dcap-qvl's own parser, and hostile ones."""

from __future__ import annotations

import struct
from pathlib import Path

import dcap_qvl  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import MalformedQuoteError, UnsupportedQuoteError
from cloister.sgx.quote import (
    QuoteSignature,
    TdReport,
    pack_quote_v3,
    parse_header,
    parse_quote,
    qe_report_data,
)
from cloister.sgx.report import ReportBody


@pytest.fixture
def sgx_quote(data: Path) -> bytes:
    return (data / "quotes" / "sgx_quote").read_bytes()


@pytest.fixture
def tdx_quote(data: Path) -> bytes:
    return (data / "quotes" / "tdx_quote").read_bytes()


def test_an_sgx_quote_reads_as_dcap_qvl_reads_it(sgx_quote: bytes) -> None:
    ours, theirs = parse_quote(sgx_quote), dcap_qvl.parse_quote(sgx_quote)
    assert not ours.is_tdx
    assert ours.header.version == theirs.header.version == 3
    assert ours.header.qe_svn == theirs.header.qe_svn
    assert ours.header.pce_svn == theirs.header.pce_svn
    assert ours.header.user_data == theirs.header.user_data
    report = ours.report
    assert isinstance(report, ReportBody)
    assert report.mr_enclave == theirs.report.mr_enclave
    assert report.mr_signer == theirs.report.mr_signer
    assert report.cpu_svn == theirs.report.cpu_svn
    assert report.flags.to_bytes(8, "little") == theirs.report.attributes[:8]
    assert report.report_data == theirs.report.report_data == b"Hello, world!".ljust(64, b"\0")
    assert ours.signature.certification_data.rstrip(b"\0") == theirs.cert_chain_pem_bytes()


def test_a_tdx_quote_reads_as_dcap_qvl_reads_it(tdx_quote: bytes) -> None:
    ours, theirs = parse_quote(tdx_quote), dcap_qvl.parse_quote(tdx_quote)
    assert ours.is_tdx
    report = ours.report
    assert isinstance(report, TdReport)
    assert report.mr_td == theirs.report.mr_td
    assert report.rtmr0 == theirs.report.rt_mr0
    assert report.rtmr3 == theirs.report.rt_mr3
    assert report.mr_seam == theirs.report.mr_seam
    assert report.td_attributes.to_bytes(8, "little") == theirs.report.td_attributes
    assert report.report_data == theirs.report.report_data
    assert not report.debug


def test_the_qe_report_vouches_for_the_attestation_key(sgx_quote: bytes) -> None:
    quote = parse_quote(sgx_quote)
    signature = quote.signature
    expected = qe_report_data(signature.attestation_key, signature.qe_auth_data)
    assert quote.qe_report.report_data == expected


def test_packing_gives_the_real_quote_again(sgx_quote: bytes) -> None:
    quote = parse_quote(sgx_quote)
    assert quote.header.pack() == sgx_quote[:48]
    assert pack_quote_v3(sgx_quote[:432], quote.signature) == sgx_quote


@given(size=st.integers(0, 4599))
@example(size=0)
@example(size=47)
@example(size=435)
@example(size=4599)
def test_a_quote_cut_short_anywhere_is_refused(size: int) -> None:
    quote = (Path(__file__).parent.parent / "data" / "quotes" / "sgx_quote").read_bytes()
    with pytest.raises(MalformedQuoteError):
        parse_quote(quote[:size])


def test_bytes_after_a_quote_are_refused(sgx_quote: bytes, tdx_quote: bytes) -> None:
    with pytest.raises(MalformedQuoteError, match="1 bytes after"):
        parse_quote(sgx_quote + b"\0")
    with pytest.raises(MalformedQuoteError, match="after its end"):
        parse_quote(tdx_quote + b"\x01")


def test_zero_padding_of_a_tdx_quote_is_not_part_of_it(tdx_quote: bytes) -> None:
    padded = parse_quote(tdx_quote + bytes(100))
    assert padded.raw == parse_quote(tdx_quote).raw
    assert padded.raw == tdx_quote.rstrip(b"\0") + b"\0"  # the PEM chain ends with one NUL


@pytest.mark.parametrize("version", [1, 2])
def test_epid_is_recognised_by_name(sgx_quote: bytes, version: int) -> None:
    with pytest.raises(UnsupportedQuoteError, match="EPID"):
        parse_quote(struct.pack("<H", version) + sgx_quote[2:])


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"\x06\x00", "version 6"),
        (2, b"\x03\x00", "key type 3"),
        (4, b"\x81\x00\x00\x00", "TEE type 0x81"),
    ],
)
def test_other_kinds_are_refused(sgx_quote: bytes, offset: int, value: bytes, words: str) -> None:
    changed = sgx_quote[:offset] + value + sgx_quote[offset + len(value) :]
    with pytest.raises(UnsupportedQuoteError, match=words):
        parse_quote(changed)


def test_an_oversized_quote_is_refused_before_it_is_read(sgx_quote: bytes) -> None:
    with pytest.raises(MalformedQuoteError, match="at most 16384"):
        parse_quote(sgx_quote + bytes(20000))


def version_5(sgx_quote: bytes, kind: int, body: bytes, tee: int) -> bytes:
    v3 = parse_quote(sgx_quote).signature
    inner = v3.qe_report + v3.qe_report_signature
    inner += struct.pack("<H", len(v3.qe_auth_data)) + v3.qe_auth_data
    inner += struct.pack("<HI", 5, len(v3.certification_data)) + v3.certification_data
    outer = v3.signature + v3.attestation_key + struct.pack("<HI", 6, len(inner)) + inner
    header = struct.pack("<HHI", 5, 2, tee) + sgx_quote[8:48]
    body = struct.pack("<HI", kind, len(body)) + body
    return header + body + struct.pack("<I", len(outer)) + outer


@pytest.mark.parametrize(("kind", "size", "tee"), [(1, 384, 0), (2, 584, 0x81), (3, 648, 0x81)])
def test_version_5_names_its_body(sgx_quote: bytes, kind: int, size: int, tee: int) -> None:
    body = bytes(range(256)) * 3
    quote = parse_quote(version_5(sgx_quote, kind, body[:size], tee))
    assert quote.body == body[:size]
    assert quote.is_tdx == (tee == 0x81)
    assert quote.signature == parse_quote(sgx_quote).signature


@pytest.mark.parametrize(("kind", "size", "tee"), [(1, 384, 0x81), (2, 583, 0x81), (9, 584, 0x81)])
def test_version_5_bodies_that_do_not_fit_are_refused(
    sgx_quote: bytes, kind: int, size: int, tee: int
) -> None:
    with pytest.raises(UnsupportedQuoteError, match="combination"):
        parse_quote(version_5(sgx_quote, kind, bytes(size), tee))


@given(st.binary(max_size=700))
def test_garbage_is_refused_with_an_error_of_ours(data: bytes) -> None:
    with pytest.raises((MalformedQuoteError, UnsupportedQuoteError)):
        parse_quote(data)


@given(
    signature=st.builds(
        QuoteSignature,
        signature=st.binary(min_size=64, max_size=64),
        attestation_key=st.binary(min_size=64, max_size=64),
        qe_report=st.binary(min_size=384, max_size=384),
        qe_report_signature=st.binary(min_size=64, max_size=64),
        qe_auth_data=st.binary(max_size=100),
        certification_type=st.integers(1, 7),
        certification_data=st.binary(max_size=1000),
    ),
    body=st.binary(min_size=384, max_size=384),
)
def test_a_packed_quote_reads_back(signature: QuoteSignature, body: bytes) -> None:
    header = struct.pack("<HHIHH", 3, 2, 0, 1, 2) + bytes(36)
    quote = parse_quote(pack_quote_v3(header + body, signature))
    assert quote.signature == signature
    assert quote.body == body


def test_a_header_alone_can_be_read(sgx_quote: bytes) -> None:
    assert parse_header(sgx_quote[:48]).version == 3
    with pytest.raises(MalformedQuoteError):
        parse_header(sgx_quote[:47])
