"""Collateral: what a verifier must know besides the quote, in dcap-qvl's JSON form.

Certificate chains are PEM, revocation lists and signatures lower-case hex, TCB info and QE
identity the exact text that was signed (Intel SGX PCS API, version 4).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from cloister.errors import CollateralError

MAX_COLLATERAL_SIZE = 4 * 1024 * 1024
"""Longest collateral file that is read, in bytes; real ones have 10 to 20 kilobytes."""

_BYTES_FIELDS = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


@dataclasses.dataclass(frozen=True)
class Collateral:
    """The collateral of one kind of platform (one FMSPC); unverified.

    A file's ``pck_certificate_chain`` is left out on purpose: dcap-qvl would let it replace the
    chain in the quote, and then two different certificates would be judged.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    def __post_init__(self) -> None:
        # JSON can say half of a UTF-16 pair, which no text that was ever signed holds.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
                raise CollateralError(f"collateral: field {field.name} is not text")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Collateral:
        """Read the nine fields from decoded JSON.

        Raises:
            CollateralError: a field is missing or not of its type.
        """
        if not isinstance(data, Mapping):
            raise CollateralError("collateral: not a JSON object")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = data.get(field.name)
            if not isinstance(text, str):
                raise CollateralError(f"collateral: field {field.name} is missing or not a string")
            values[field.name] = _from_hex(field.name, text)
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Collateral:
        """Read collateral in dcap-qvl's JSON form.

        Raises:
            CollateralError: not JSON, too long, or a field is missing.
        """
        return cls.from_dict(parse_json(text, "collateral"))

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON-ready text."""
        return {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> str:
        """Return dcap-qvl's JSON form."""
        return json.dumps(self.to_dict(), indent=1)


@functools.lru_cache(maxsize=256)
def tee_and_fmspc(collateral: Collateral) -> tuple[str, str]:
    """Return the TEE (``sgx`` or ``tdx``) and the FMSPC (upper-case hex) of its TCB info.

    Raises:
        CollateralError: the TCB info is damaged.
    """
    try:
        info = json.loads(collateral.tcb_info)
        return str(info["id"]).lower(), str(info["fmspc"]).upper()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CollateralError("collateral: the TCB info is damaged") from error


def parse_json(text: str | bytes, what: str) -> Any:
    """Decode a bounded piece of JSON.

    Raises:
        CollateralError: too long, or not JSON.
    """
    if len(text) > MAX_COLLATERAL_SIZE:
        raise CollateralError(f"{what}: {len(text)} bytes, at most {MAX_COLLATERAL_SIZE}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CollateralError(f"{what}: not valid JSON ({error})") from error


def _from_hex(name: str, text: str) -> str | bytes:
    if name not in _BYTES_FIELDS:
        return text
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise CollateralError(f"collateral: field {name} is not hexadecimal") from error
