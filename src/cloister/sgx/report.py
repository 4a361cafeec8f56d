"""REPORT and TARGETINFO: what EREPORT takes and makes (Intel SDM vol. 3D, 38.15 and 38.16).

Names are Intel's, in lower case. All numbers are little endian; sizes are in bytes.
"""

from __future__ import annotations

import enum
import hmac
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from cloister.sgx.structure import Structure

REPORT_BODY_SIZE = 384
REPORT_SIZE = 432
TARGET_INFO_SIZE = 512
REPORT_DATA_SIZE = 64

_BODY_FIELDS = {
    "cpu_svn": (0, "16s"),
    "misc_select": (16, "I"),
    "cet_attributes": (20, "B"),
    "isv_ext_prod_id": (32, "16s"),
    "flags": (48, "Q"),
    "xfrm": (56, "Q"),
    "mr_enclave": (64, "32s"),
    "mr_signer": (128, "32s"),
    "config_id": (192, "64s"),
    "isv_prod_id": (256, "H"),
    "isv_svn": (258, "H"),
    "config_svn": (260, "H"),
    "isv_family_id": (304, "16s"),
    "report_data": (320, "64s"),
}
_BODY = Structure("REPORT body", REPORT_BODY_SIZE, _BODY_FIELDS)
_REPORT = Structure(
    "REPORT", REPORT_SIZE, {"body": (0, "384s"), "key_id": (384, "32s"), "mac": (416, "16s")}
)
_TARGET_INFO = Structure(
    "TARGETINFO",
    TARGET_INFO_SIZE,
    {
        "mr_enclave": (0, "32s"),
        "flags": (32, "Q"),
        "xfrm": (40, "Q"),
        "cet_attributes": (48, "B"),
        "config_svn": (50, "H"),
        "misc_select": (52, "I"),
        "config_id": (64, "64s"),
    },
)


class Attribute(enum.IntFlag):
    """Bits of ATTRIBUTES.FLAGS (Intel SDM vol. 3D, 38.7.1)."""

    INIT = 0x1
    DEBUG = 0x2
    MODE64 = 0x4
    PROVISION_KEY = 0x10
    EINITTOKEN_KEY = 0x20


class ReportBody(NamedTuple):
    """The first 384 bytes of a REPORT: what the processor says about an enclave."""

    cpu_svn: bytes
    misc_select: int
    cet_attributes: int
    isv_ext_prod_id: bytes
    flags: int
    xfrm: int
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory can be read by a debugger."""
        return bool(self.flags & Attribute.DEBUG)

    def pack(self) -> bytes:
        """Return the 384 bytes."""
        return _BODY.pack(self._asdict())

    @classmethod
    def unpack(cls, data: bytes) -> ReportBody:
        """Read 384 bytes; reserved bytes are ignored.

        Raises:
            InputError: the size is not 384.
        """
        return cls(**_BODY.unpack(data))


class Report(NamedTuple):
    """A REPORT: a body and its MAC under the report key of the enclave it is meant for."""

    body: bytes
    key_id: bytes
    mac: bytes

    def pack(self) -> bytes:
        """Return the 432 bytes."""
        return _REPORT.pack({"body": self.body, "key_id": self.key_id, "mac": self.mac})

    @classmethod
    def unpack(cls, data: bytes) -> Report:
        """Read 432 bytes.

        Raises:
            InputError: the size is not 432.
        """
        return cls(**_REPORT.unpack(data))

    def mac_is_valid(self, report_key: bytes) -> bool:
        """Tell whether the MAC is right under the 16-byte report key (constant time)."""
        return hmac.compare_digest(self.mac, report_mac(self.body, report_key))


def report_mac(body: bytes, report_key: bytes) -> bytes:
    """Return the 16-byte AES-128-CMAC of the 384-byte report body."""
    cmac = CMAC(AES128(report_key))
    cmac.update(body)
    return cmac.finalize()


class TargetInfo(NamedTuple):
    """TARGETINFO: the enclave that is to verify a report."""

    mr_enclave: bytes
    flags: int
    xfrm: int
    cet_attributes: int
    config_svn: int
    misc_select: int
    config_id: bytes

    def pack(self) -> bytes:
        """Return the 512 bytes."""
        return _TARGET_INFO.pack(self._asdict())

    @classmethod
    def unpack(cls, data: bytes) -> TargetInfo:
        """Read 512 bytes; reserved bytes are ignored, as EREPORT ignores them.

        Raises:
            InputError: the size is not 512.
        """
        return cls(**_TARGET_INFO.unpack(data))
