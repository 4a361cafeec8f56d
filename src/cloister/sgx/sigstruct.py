"""SIGSTRUCT: who vouches for an enclave (Intel SDM vol. 3D, 38.13).

Signed are bytes 0 to 127 and 900 to 1027, with RSA-3072, public exponent 3, PKCS#1 v1.5 and
SHA-256. All numbers are little endian, the modulus and the signature too. Nothing here knows where
a key lives: :meth:`Sigstruct.to_be_signed` gives the bytes, :meth:`Sigstruct.with_signature` takes
what any signer made of them.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.errors import InputError, SigstructError
from cloister.sgx.report import Attribute
from cloister.sgx.structure import Structure

SIGSTRUCT_SIZE = 1808
MODULUS_SIZE = 384
EXPONENT = 3
NO_DATE = "0000-00-00"

_HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2 = bytes.fromhex("01010000600000006000000001000000")

_LAYOUT = Structure(
    "SIGSTRUCT",
    SIGSTRUCT_SIZE,
    {
        "header": (0, "16s"),
        "vendor": (16, "I"),
        "date": (20, "I"),
        "header2": (24, "16s"),
        "swdefined": (40, "I"),
        "modulus": (128, "384s"),
        "exponent": (512, "I"),
        "signature": (516, "384s"),
        "misc_select": (900, "I"),
        "misc_mask": (904, "I"),
        "cet_attributes": (908, "B"),
        "cet_attributes_mask": (909, "B"),
        "isv_family_id": (912, "16s"),
        "flags": (928, "Q"),
        "xfrm": (936, "Q"),
        "flags_mask": (944, "Q"),
        "xfrm_mask": (952, "Q"),
        "mr_enclave": (960, "32s"),
        "isv_ext_prod_id": (1008, "16s"),
        "isv_prod_id": (1024, "H"),
        "isv_svn": (1026, "H"),
        "q1": (1040, "384s"),
        "q2": (1424, "384s"),
    },
)
_SIGNED_RANGES = (slice(0, 128), slice(900, 1028))
_SIGNED_SIZE = 256
_CONSTANTS: dict[str, int | bytes] = {"header": _HEADER, "header2": _HEADER2, "exponent": EXPONENT}


class Sigstruct(NamedTuple):
    """A SIGSTRUCT, signed or not yet.

    Attributes:
        mr_enclave: measurement of the enclave, 32 bytes.
        modulus: the signer's RSA modulus.
        flags, flags_mask: ATTRIBUTES.FLAGS and which bits of them the signer insists on.
        xfrm, xfrm_mask: processor state components, likewise.
        misc_select, misc_mask: MISCSELECT, likewise.
        isv_prod_id, isv_svn: product number and security version, 16 bits each.
        date: binary-coded decimal 0xYYYYMMDD; see :func:`encode_date`.
        signature: 0 while unsigned.
        q1, q2: helpers that let the processor verify without division.
    """

    mr_enclave: bytes
    modulus: int
    flags: int
    xfrm: int
    flags_mask: int
    xfrm_mask: int
    misc_select: int
    misc_mask: int
    isv_prod_id: int
    isv_svn: int
    date: int
    signature: int = 0
    q1: int = 0
    q2: int = 0
    vendor: int = 0
    swdefined: int = 0
    cet_attributes: int = 0
    cet_attributes_mask: int = 0
    isv_family_id: bytes = bytes(16)
    isv_ext_prod_id: bytes = bytes(16)

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER: SHA-256 of the 384-byte little-endian modulus."""
        return mr_signer(self.modulus)

    @property
    def debug(self) -> bool:
        """Whether the enclave may be opened with a debugger."""
        return bool(self.flags & Attribute.DEBUG)

    def pack(self) -> bytes:
        """Return the 1808 bytes."""
        values = self._asdict()
        for name in ("modulus", "signature", "q1", "q2"):
            values[name] = values[name].to_bytes(MODULUS_SIZE, "little")
        return _LAYOUT.pack(values | _CONSTANTS)

    @classmethod
    def unpack(cls, data: bytes) -> Sigstruct:
        """Read 1808 bytes. The signature is not checked here; see :meth:`verify`.

        Raises:
            SigstructError: wrong size, wrong constants, or reserved bytes that are not zero.
        """
        if len(data) != SIGSTRUCT_SIZE:
            raise SigstructError(f"SIGSTRUCT: {len(data)} bytes, expected exactly {SIGSTRUCT_SIZE}")
        values = _LAYOUT.unpack(data)
        for name, expected in _CONSTANTS.items():
            found = values.pop(name)
            if found != expected:
                raise SigstructError(f"SIGSTRUCT: {name} is {_show(found)}, not {_show(expected)}")
        if not _LAYOUT.reserved_is_zero(data):
            raise SigstructError("SIGSTRUCT: reserved bytes are not zero")
        for name in ("modulus", "signature", "q1", "q2"):
            values[name] = int.from_bytes(values[name], "little")
        return cls(**values)

    def to_be_signed(self) -> bytes:
        """Return the 256 bytes over which RSASSA-PKCS1-v1_5 with SHA-256 is computed."""
        data = self.pack()
        return b"".join(data[part] for part in _SIGNED_RANGES)

    @classmethod
    def from_to_be_signed(cls, data: bytes, modulus: int) -> Sigstruct:
        """Read back the 256 bytes of :meth:`to_be_signed`.

        Raises:
            SigstructError: they are not those of a SIGSTRUCT.
        """
        first, second = _SIGNED_RANGES
        if len(data) != _SIGNED_SIZE:
            raise SigstructError(f"SIGSTRUCT: {len(data)} signed bytes, expected {_SIGNED_SIZE}")
        whole = bytearray(cls._empty(modulus).pack())
        whole[first], whole[second] = data[: first.stop], data[first.stop :]
        return cls.unpack(bytes(whole))

    @classmethod
    def _empty(cls, modulus: int) -> Sigstruct:
        """Return a SIGSTRUCT of ``modulus`` in which everything else is zero."""
        return cls(
            mr_enclave=bytes(32),
            modulus=modulus,
            flags=0,
            xfrm=0,
            flags_mask=0,
            xfrm_mask=0,
            misc_select=0,
            misc_mask=0,
            isv_prod_id=0,
            isv_svn=0,
            date=0,
        )

    def with_signature(self, signature: bytes) -> Sigstruct:
        """Attach a signature and compute Q1 and Q2.

        Args:
            signature: 384 bytes, big endian, as RSA libraries and HSMs give it.

        Raises:
            SigstructError: the signature is not one of :meth:`to_be_signed` by this modulus.
        """
        if len(signature) != MODULUS_SIZE:
            raise SigstructError(f"signature: {len(signature)} bytes, expected {MODULUS_SIZE}")
        number = int.from_bytes(signature, "big")
        if number >= self.modulus:  # before Q1 and Q2, which would not fit either
            raise SigstructError("SIGSTRUCT: the signature is wrong")
        q1, q2 = _quotients(number, self.modulus)
        signed = self._replace(signature=number, q1=q1, q2=q2)
        signed.verify()
        return signed

    def sign(self, key: rsa.RSAPrivateKey) -> Sigstruct:
        """Sign with ``key``, whose modulus must be :attr:`modulus`; the result is deterministic.

        Raises:
            SigstructError: the key is not the one of :attr:`modulus`.
        """
        return self.with_signature(
            key.sign(self.to_be_signed(), padding.PKCS1v15(), hashes.SHA256())
        )

    def verify(self) -> None:
        """Check the signature, Q1 and Q2, as EINIT does.

        Raises:
            SigstructError: one of them is wrong.
        """
        self._verify_signature()
        if (self.q1, self.q2) != _quotients(self.signature, self.modulus):
            raise SigstructError("SIGSTRUCT: Q1 or Q2 does not fit the signature")

    def _verify_signature(self) -> None:
        if self.modulus.bit_length() != MODULUS_SIZE * 8:
            raise SigstructError(
                f"SIGSTRUCT: a modulus of {self.modulus.bit_length()} bits, expected 3072"
            )
        try:
            rsa.RSAPublicNumbers(EXPONENT, self.modulus).public_key().verify(
                self.signature.to_bytes(MODULUS_SIZE, "big"),
                self.to_be_signed(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except (InvalidSignature, ValueError) as error:
            raise SigstructError("SIGSTRUCT: the signature is wrong") from error


def mr_signer(modulus: int) -> bytes:
    """Return MRSIGNER of a 3072-bit modulus: SHA-256 of its 384 little-endian bytes."""
    return hashlib.sha256(modulus.to_bytes(MODULUS_SIZE, "little")).digest()


def _quotients(signature: int, modulus: int) -> tuple[int, int]:
    if modulus == 0:
        return 0, 0
    q1, remainder = divmod(signature * signature, modulus)
    return q1, remainder * signature // modulus


def encode_date(text: str) -> int:
    """Return ``YYYY-MM-DD`` as binary-coded decimal 0xYYYYMMDD; ``0000-00-00`` means no date.

    Raises:
        InputError: not a date of the calendar.
    """
    if text != NO_DATE:
        try:
            if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
                raise ValueError(text)  # noqa: TRY301  (one message for both kinds of nonsense)
            datetime.date.fromisoformat(text)
        except ValueError as error:
            raise InputError(f"date {text!r}: expected YYYY-MM-DD, {NO_DATE} or today") from error
    return int(text.replace("-", ""), 16)


def decode_date(date: int) -> str:
    """Return the ``date`` field as ``YYYY-MM-DD`` (hexadecimal digits if it is no decimal)."""
    digits = f"{date:08x}"
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"


def _show(value: int | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
