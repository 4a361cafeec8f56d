"""Small signed enclaves for tests of platforms, with the signing fixture's key and image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.sgx.measurement import measure
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).parent / "data" / "signing"
IMAGE = (SIGNING / "pal.so").read_bytes()
PARAMETERS: dict[str, Any] = {"enclave_size": 1 << 24, "max_threads": 1, "edmm": True}


def signed(manifest: bytes, **fields: Any) -> Sigstruct:
    """Return the SIGSTRUCT of a manifest's bytes; fields may be set by name."""
    key = load_pem_private_key((SIGNING / "key.pem").read_bytes(), password=None)
    assert isinstance(key, RSAPrivateKey)
    values: dict[str, Any] = {
        "mr_enclave": measure(manifest, IMAGE, **PARAMETERS).mrenclave,
        "modulus": key.public_key().public_numbers().n,
        "flags": 4,
        "xfrm": 3,
        "flags_mask": 0xFFFF_FFFF_FFFF_FFFF,
        "xfrm_mask": 0xFFFF_FFFF_FFF9_FF1B,
        "misc_select": 0,
        "misc_mask": 0xFFFF_FFFF,
        "isv_prod_id": 7,
        "isv_svn": 3,
        "date": 0x20260102,
    }
    return Sigstruct(**(values | fields)).sign(key)
