"""EINITTOKEN as Graphene's loader wants it beside a signed enclave (Intel SDM vol. 3D, 38.14).

With flexible launch control the processor needs no token. Graphene still reads the enclave's
attributes from one, so a token that grants nothing ("dummy") is written.
"""

from __future__ import annotations

from cloister.sgx.sigstruct import Sigstruct
from cloister.sgx.structure import Structure

TOKEN_SIZE = 304

_LAYOUT = Structure(
    "EINITTOKEN",
    TOKEN_SIZE,
    {
        "valid": (0, "I"),
        "flags": (48, "Q"),
        "xfrm": (56, "Q"),
        "mr_enclave": (64, "32s"),
        "mr_signer": (128, "32s"),
        "cpu_svn_le": (192, "16s"),
        "isv_prod_id_le": (208, "H"),
        "isv_svn_le": (210, "H"),
        "masked_misc_select_le": (236, "I"),
        "masked_flags_le": (240, "Q"),
        "masked_xfrm_le": (248, "Q"),
        "key_id": (256, "32s"),
        "mac": (288, "16s"),
    },
)


def dummy_token(sigstruct: Sigstruct, *, xfrm: int | None = None) -> bytes:
    """Return the 304-byte token that grants nothing and carries the enclave's attributes.

    Args:
        sigstruct: the enclave's SIGSTRUCT.
        xfrm: XFRM of the enclave that is to be made; None takes the SIGSTRUCT's own.
    """
    return _LAYOUT.pack(
        {
            "flags": sigstruct.flags,
            "xfrm": sigstruct.xfrm if xfrm is None else xfrm,
            "masked_misc_select_le": sigstruct.misc_mask,
        }
    )
