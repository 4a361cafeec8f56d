"""REPORT and TARGETINFO: offsets of the SDM, round trips, AES-CMAC by OpenSSL's own hand."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.sgx.report import Report, ReportBody, TargetInfo, report_mac


def numbers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def octets(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


BODIES = st.builds(
    ReportBody,
    cpu_svn=octets(16),
    misc_select=numbers(32),
    cet_attributes=numbers(8),
    isv_ext_prod_id=octets(16),
    flags=numbers(64),
    xfrm=numbers(64),
    mr_enclave=octets(32),
    mr_signer=octets(32),
    config_id=octets(64),
    isv_prod_id=numbers(16),
    isv_svn=numbers(16),
    config_svn=numbers(16),
    isv_family_id=octets(16),
    report_data=octets(64),
)


@given(BODIES)
def test_report_body_survives_packing(body: ReportBody) -> None:
    packed = body.pack()
    assert len(packed) == 384
    assert ReportBody.unpack(packed) == body


@given(BODIES)
def test_report_body_fields_are_where_the_manual_says(body: ReportBody) -> None:
    packed = body.pack()
    assert packed[0:16] == body.cpu_svn
    assert packed[48:56] == body.flags.to_bytes(8, "little")
    assert packed[64:96] == body.mr_enclave
    assert packed[128:160] == body.mr_signer
    assert packed[256:258] == body.isv_prod_id.to_bytes(2, "little")
    assert packed[258:260] == body.isv_svn.to_bytes(2, "little")
    assert packed[320:384] == body.report_data


@given(octets(384), octets(32), octets(16))
def test_report_survives_packing(body: bytes, key_id: bytes, mac: bytes) -> None:
    packed = Report(body, key_id, mac).pack()
    assert packed == body + key_id + mac
    assert Report.unpack(packed) == Report(body, key_id, mac)


def test_target_info_fields_are_where_the_manual_says() -> None:
    info = TargetInfo(
        mr_enclave=b"m" * 32,
        flags=0x0102030405060708,
        xfrm=0x1112131415161718,
        cet_attributes=0x21,
        config_svn=0x3132,
        misc_select=0x41424344,
        config_id=b"c" * 64,
    )
    packed = info.pack()
    expected = (
        b"m" * 32
        + bytes.fromhex("0807060504030201 1817161514131211 21 00 3231 44434241")
        + bytes(8)
        + b"c" * 64
        + bytes(384)
    )
    assert packed == expected
    assert TargetInfo.unpack(packed) == info


@pytest.mark.parametrize("size", [0, 431, 433])
def test_a_report_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="432"):
        Report.unpack(bytes(size))


def test_the_mac_is_aes_cmac_as_openssl_computes_it() -> None:
    key, body = bytes(range(16)), bytes(384)
    command = ["openssl", "mac", "-cipher", "AES-128-CBC", "-macopt", f"hexkey:{key.hex()}", "CMAC"]
    printed = subprocess.run(command, input=body, capture_output=True, check=True).stdout
    assert report_mac(body, key) == bytes.fromhex(printed.decode().strip())


def test_a_report_with_one_bit_changed_has_a_wrong_mac() -> None:
    key, body = b"k" * 16, bytes(384)
    mac = report_mac(body, key)
    assert Report(body, bytes(32), mac).mac_is_valid(key)
    assert not Report(b"\x01" + body[1:], bytes(32), mac).mac_is_valid(key)
    assert not Report(body, bytes(32), mac).mac_is_valid(b"l" * 16)
