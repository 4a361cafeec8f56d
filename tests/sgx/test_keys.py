"""EGETKEY: what a key depends on, what it does not, and what is refused (SDM vol. 3D)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import KeyRequestError
from cloister.sgx.keys import (
    SEAL_XFRM_MASK,
    EnclaveIdentity,
    FusedKeys,
    KeyName,
    KeyPolicy,
    KeyRequest,
    derive_key,
    report_key_for_target,
)
from cloister.sgx.report import Attribute, TargetInfo

CPU_SVN = bytes(range(1, 17))
ENCLAVE = EnclaveIdentity(
    mr_enclave=b"e" * 32,
    mr_signer=b"s" * 32,
    flags=Attribute.INIT | Attribute.MODE64,
    xfrm=0x7,
    misc_select=0,
    isv_prod_id=5,
    isv_svn=9,
)
SEAL = KeyRequest(
    key_name=KeyName.SEAL,
    policy=KeyPolicy.MRENCLAVE,
    isv_svn=9,
    cpu_svn=CPU_SVN,
    flags_mask=2**64 - 1,
    xfrm_mask=SEAL_XFRM_MASK,
    misc_mask=2**32 - 1,
)


def device(letter: str = "f") -> FusedKeys:
    return FusedKeys(*(bytearray((letter + number).encode() * 8) for number in "123"))


def key(
    enclave: EnclaveIdentity = ENCLAVE, request: KeyRequest = SEAL, fused: FusedKeys | None = None
) -> bytes:
    return derive_key(fused or device(), enclave, request, cpu_svn=CPU_SVN)


def other_enclave(**changes: Any) -> EnclaveIdentity:
    return ENCLAVE._replace(**changes)


def other_request(**changes: Any) -> KeyRequest:
    return SEAL._replace(**changes)


BY_SIGNER = other_request(policy=KeyPolicy.MRSIGNER)


def test_keys_have_16_bytes_and_are_the_same_again() -> None:
    assert len(key()) == 16
    assert key() == key()


def test_another_device_has_other_keys() -> None:
    assert key() != key(fused=device("g"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mr_enclave": b"x" * 32},
        {"isv_prod_id": 6},
        {"flags": ENCLAVE.flags | Attribute.DEBUG},
        {"flags": ENCLAVE.flags | 0x80},
        {"xfrm": 0x1F},
        {"misc_select": 1},
    ],
)
def test_a_seal_key_by_enclave_depends_on(changes: dict[str, Any]) -> None:
    assert key() != key(other_enclave(**changes))


def test_a_seal_key_by_enclave_does_not_depend_on_the_signer() -> None:
    assert key() == key(other_enclave(mr_signer=b"x" * 32))


@pytest.mark.parametrize(
    "changes",
    [{"mr_signer": b"x" * 32}, {"isv_prod_id": 6}, {"flags": ENCLAVE.flags | Attribute.DEBUG}],
)
def test_a_seal_key_by_signer_depends_on(changes: dict[str, Any]) -> None:
    assert key(request=BY_SIGNER) != key(other_enclave(**changes), BY_SIGNER)


def test_a_seal_key_by_signer_is_shared_by_the_signers_enclaves() -> None:
    assert key(request=BY_SIGNER) == key(other_enclave(mr_enclave=b"x" * 32), BY_SIGNER)


def test_a_newer_version_gets_the_key_of_an_older_one_but_not_the_reverse() -> None:
    old = other_request(policy=KeyPolicy.MRSIGNER, isv_svn=3)
    assert key(request=old) == key(other_enclave(isv_svn=3), old)
    with pytest.raises(KeyRequestError, match="ISVSVN 9"):
        key(other_enclave(isv_svn=3), BY_SIGNER)


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_svn": bytes([255, *CPU_SVN[1:]])},
        {"config_svn": 1},
        {"policy": 4},
        {"key_name": 0},
        {"key_name": 1},
    ],
)
def test_a_request_beyond_the_enclaves_rights_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(KeyRequestError):
        key(request=other_request(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": b"i" * 32},
        {"cpu_svn": bytes(16)},
        {"policy": KeyPolicy.MRENCLAVE | KeyPolicy.MRSIGNER},
        {"flags_mask": 0},
        {"xfrm_mask": 0},
        {"misc_mask": 0},
    ],
)
def test_a_seal_key_depends_on_the_request(changes: dict[str, Any]) -> None:
    assert key() != key(request=other_request(**changes))


def test_masked_attributes_do_not_matter_except_debug_and_init() -> None:
    loose = other_request(flags_mask=0, xfrm_mask=0, misc_mask=0)
    same = other_enclave(flags=ENCLAVE.flags | 0x80, xfrm=0xE7, misc_select=1)
    assert key(request=loose) == key(same, loose)
    debug = other_enclave(flags=ENCLAVE.flags | Attribute.DEBUG)
    assert key(request=loose) != key(debug, loose)


def test_the_report_key_of_a_target_is_the_one_the_target_gets() -> None:
    target = TargetInfo(
        mr_enclave=ENCLAVE.mr_enclave,
        flags=ENCLAVE.flags,
        xfrm=ENCLAVE.xfrm,
        cet_attributes=0,
        config_svn=0,
        misc_select=0,
        config_id=bytes(64),
    )
    made = report_key_for_target(device(), target, key_id=b"i" * 32, cpu_svn=CPU_SVN)
    request = KeyRequest(key_name=KeyName.REPORT, key_id=b"i" * 32)
    assert made == key(request=request)
    assert made != key(other_enclave(mr_enclave=b"x" * 32), request)
    assert made != key()


@given(
    st.integers(0, 2**16 - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
def test_key_request_survives_packing(svn: int, key_id: bytes, misc: int, flags: int) -> None:
    request = other_request(isv_svn=svn, key_id=key_id, misc_mask=misc, flags_mask=flags)
    packed = request.pack()
    assert len(packed) == 512
    assert packed[40:72] == key_id
    assert KeyRequest.unpack(packed) == request


def test_a_key_request_with_reserved_bytes_set_is_refused() -> None:
    packed = bytearray(SEAL.pack())
    packed[100] = 1
    with pytest.raises(KeyRequestError, match="reserved"):
        KeyRequest.unpack(bytes(packed))


def test_wiped_keys_are_zero() -> None:
    fused = device()
    fused.wipe()
    assert fused.seal == fused.report == fused.owner_epoch == bytearray(16)


def test_keys_do_not_show_in_text() -> None:
    assert "f1" not in repr(device())
