"""Processor features that an enclave insists on: XFRM, ATTRIBUTES and MISCSELECT with their masks.

XFRM has one bit for each state component of XCR0 (Intel SDM vol. 3D, 38.7.2, and vol. 1, 13.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cloister.sgx.report import Attribute

Demand = Literal["unspecified", "disabled", "required"]

XFRM_LEGACY = 0x3
XFRM_BITS = {"avx": 0x4, "avx512": 0xE4, "amx": 0x60000, "mpx": 0x18, "pkru": 0x200}
"""Feature -> bits, in the order in which demands are applied."""

MISC_EXINFO = 1

_ALL_64 = 0xFFFF_FFFF_FFFF_FFFF
_ALL_32 = 0xFFFF_FFFF


@dataclass(frozen=True)
class EnclaveAttributes:
    """What SIGSTRUCT says of ATTRIBUTES and MISCSELECT; a mask bit of 0 means: do not care."""

    flags: int
    xfrm: int
    flags_mask: int
    xfrm_mask: int
    misc_select: int
    misc_mask: int


def enclave_attributes(
    *, debug: bool, use_exinfo: bool, features: Mapping[str, Demand]
) -> EnclaveAttributes:
    """Return the attributes of an enclave.

    Args:
        debug: whether a debugger may open it.
        use_exinfo: whether page faults report their address.
        features: demands by the names of :data:`XFRM_BITS`.
    """
    xfrm, xfrm_mask = XFRM_LEGACY, _ALL_64
    for bits in (XFRM_BITS[name] for name, demand in features.items() if demand == "unspecified"):
        xfrm_mask &= ~bits
    for name, bits in XFRM_BITS.items():
        demand = features[name]
        if demand == "required":
            xfrm |= bits
            xfrm_mask |= bits
        elif demand == "disabled":
            xfrm &= ~bits
            xfrm_mask |= bits
    return EnclaveAttributes(
        flags=Attribute.MODE64 | (Attribute.DEBUG if debug else 0),
        xfrm=xfrm,
        flags_mask=_ALL_64,
        xfrm_mask=xfrm_mask,
        misc_select=MISC_EXINFO if use_exinfo else 0,
        misc_mask=_ALL_32,
    )
