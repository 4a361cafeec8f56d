"""SIGSTRUCT against Gramine's signer and OpenSSL."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, SigstructError
from cloister.sgx.features import enclave_attributes
from cloister.sgx.sigstruct import Sigstruct, decode_date, encode_date
from cloister.sgx.token import dummy_token

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
FEATURES = {
    "avx": "unspecified",
    "avx512": "required",
    "amx": "unspecified",
    "mpx": "disabled",
    "pkru": "disabled",
}


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    loaded = load_pem_private_key((SIGNING / "key.pem").read_bytes(), None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    return loaded


@pytest.mark.parametrize("name", ["app", "app-edmm"])
def test_signing_gives_gramines_bytes(name: str, key: rsa.RSAPrivateKey) -> None:
    view = json.loads((SIGNING / f"{name}.sig.json").read_text())
    attributes = enclave_attributes(debug=False, use_exinfo=False, features=FEATURES)  # type: ignore[arg-type]
    unsigned = Sigstruct(
        mr_enclave=bytes.fromhex(view["mr_enclave"]),
        modulus=key.public_key().public_numbers().n,
        isv_prod_id=view["isv_prod_id"],
        isv_svn=view["isv_svn"],
        date=encode_date(view["date"]),
        **dataclasses.asdict(attributes),
    )
    assert unsigned.sign(key).pack() == (SIGNING / f"{name}.sig").read_bytes()


@pytest.mark.parametrize("name", ["app", "app-edmm"])
def test_reading_gives_gramines_view(name: str) -> None:
    sigstruct = Sigstruct.unpack((SIGNING / f"{name}.sig").read_bytes())
    sigstruct.verify()
    assert {
        "mr_signer": sigstruct.mr_signer.hex(),
        "mr_enclave": sigstruct.mr_enclave.hex(),
        "isv_prod_id": sigstruct.isv_prod_id,
        "isv_svn": sigstruct.isv_svn,
        "attribute_flags": hex(sigstruct.flags),
        "attribute_xfrms": hex(sigstruct.xfrm),
        "misc_select": hex(sigstruct.misc_select),
        "attribute_flags_mask": hex(sigstruct.flags_mask),
        "attribute_xfrm_mask": hex(sigstruct.xfrm_mask),
        "misc_mask": hex(sigstruct.misc_mask),
        "date": decode_date(sigstruct.date),
        "debug_enclave": sigstruct.debug,
    } == json.loads((SIGNING / f"{name}.sig.json").read_text())


def test_signature_made_elsewhere(tmp_path: Path) -> None:
    """What an HSM would do is done by OpenSSL: it sees only the 256 bytes."""
    expected = (SIGNING / "app.sig").read_bytes()
    signed = Sigstruct.unpack(expected)
    unsigned = signed._replace(signature=0, q1=0, q2=0)
    (tmp_path / "to-be-signed").write_bytes(unsigned.to_be_signed())
    openssl = ["openssl", "dgst", "-sha256", "-sign", str(SIGNING / "key.pem")]
    signature = subprocess.run(
        [*openssl, str(tmp_path / "to-be-signed")], capture_output=True, check=True
    ).stdout
    assert unsigned.with_signature(signature).pack() == expected
    with pytest.raises(SigstructError, match="signature is wrong"):
        unsigned.with_signature(signature[:-1] + bytes([signature[-1] ^ 1]))
    with pytest.raises(SigstructError, match="383 bytes"):
        unsigned.with_signature(signature[:-1])


def test_key_of_somebody_else_is_refused() -> None:
    signed = Sigstruct.unpack((SIGNING / "app.sig").read_bytes())
    other = rsa.generate_private_key(3, 3072)
    with pytest.raises(SigstructError, match="signature is wrong"):
        signed.sign(other)


@given(st.integers(0, 1807), st.integers(1, 255))
def test_no_changed_byte_passes(position: int, change: int) -> None:
    data = bytearray((SIGNING / "app.sig").read_bytes())
    data[position] ^= change
    with pytest.raises(SigstructError):
        Sigstruct.unpack(bytes(data)).verify()


@given(st.binary(max_size=1900))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SigstructError):
        Sigstruct.unpack(data)


@pytest.mark.parametrize(
    "text", ["2026-02-30", "26-11-22", "20261122", "", "2026-11-2x", "٢٠٢٦-01-01"]
)
def test_dates_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="expected YYYY-MM-DD"):
        encode_date(text)


def test_dates() -> None:
    assert encode_date("2026-11-22") == 0x20261122
    assert encode_date("0000-00-00") == 0
    assert decode_date(0x20261122) == "2026-11-22"


@pytest.mark.parametrize(
    ("features", "xfrm", "mask"),
    [
        ({}, 0x3, 0xFFFFFFFFFFF9FF1B),
        ({"avx512": "required", "amx": "disabled"}, 0xE7, 0xFFFFFFFFFFFFFFFF),
        ({"avx": "required"}, 0x7, 0xFFFFFFFFFFF9FF1F),
        ({"mpx": "required", "pkru": "required"}, 0x21B, 0xFFFFFFFFFFF9FF1B),
    ],
)
def test_features(features: dict[str, str], xfrm: int, mask: int) -> None:
    demands = FEATURES | {"avx512": "unspecified"} | features
    attributes = enclave_attributes(debug=True, use_exinfo=True, features=demands)  # type: ignore[arg-type]
    assert (attributes.xfrm, attributes.xfrm_mask) == (xfrm, mask)
    assert (attributes.flags, attributes.misc_select) == (6, 1)


def test_token_carries_the_attributes_and_grants_nothing() -> None:
    token = dummy_token(Sigstruct.unpack((SIGNING / "app.sig").read_bytes()))
    expected = bytearray(304)
    expected[48] = 4
    expected[56] = 0xE7
    expected[236:240] = b"\xff\xff\xff\xff"
    assert token == bytes(expected)


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=400), st.binary(min_size=384, max_size=384)))
def test_no_signature_makes_anything_but_a_refusal(signature: bytes) -> None:
    unsigned = Sigstruct.unpack((SIGNING / "app.sig").read_bytes())._replace(
        signature=0, q1=0, q2=0
    )
    with pytest.raises(SigstructError):
        unsigned.with_signature(signature)
