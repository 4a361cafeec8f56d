"""The Secret Provisioning messages, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.provision.protocol import (
    MAX_SECRET_SIZE,
    REQUEST,
    RESPONSE_HEAD_SIZE,
    check_request,
    decode_head,
    encode_head,
)


def test_the_request_has_35_bytes() -> None:
    assert REQUEST == b"SECRET_PROVISION_RA_TLS_REQUEST_V1" + b"\x00"
    assert len(REQUEST) == 35


def test_the_head_has_41_bytes_and_a_big_endian_size() -> None:
    assert RESPONSE_HEAD_SIZE == 41
    assert (
        encode_head(16) == b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:" + b"\x00" + b"\x00\x00\x00\x10"
    )
    assert encode_head(0x1234)[-4:] == b"\x00\x00\x12\x34"


@given(st.integers(1, MAX_SECRET_SIZE))
def test_heads_read_back(size: int) -> None:
    assert decode_head(encode_head(size)) == size


@pytest.mark.parametrize("size", [0, -1, MAX_SECRET_SIZE + 1, 2**31, 2**32])
def test_impossible_sizes_are_not_written(size: int) -> None:
    with pytest.raises(ProtocolError):
        encode_head(size)


@pytest.mark.parametrize("size", [b"\x00\x00\x00\x00", b"\x80\x00\x00\x00", b"\xff\xff\xff\xff"])
def test_impossible_sizes_are_not_believed(size: bytes) -> None:
    with pytest.raises(ProtocolError, match="secret of"):
        decode_head(encode_head(1)[:-4] + size)


@given(st.binary(max_size=60))
def test_other_heads_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_head(data)


@given(st.binary(max_size=60).filter(lambda data: data != REQUEST))
def test_other_requests_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_request(data)


def test_the_request_is_accepted_whole_only() -> None:
    check_request(REQUEST)
    for wrong in (REQUEST[:-1], REQUEST + b"\0", REQUEST.lower()):
        with pytest.raises(ProtocolError):
            check_request(wrong)
