"""EGETKEY: KEYREQUEST and key derivation (Intel SDM vol. 3D, 38.17 and EGETKEY in 40.4).

The derivation itself is secret inside a real processor. Here it is AES-128-CMAC, keyed with a
fused 16-byte key, over the fixed-size structure of everything that the key depends on (the
"key dependencies" table of EGETKEY). CMAC over inputs of one fixed length is a pseudo-random
function, so keys of different enclaves, policies or versions tell nothing about one another.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from cloister.errors import KeyRequestError
from cloister.sgx.report import Attribute, TargetInfo
from cloister.sgx.structure import Structure

KEY_SIZE = 16
KEY_REQUEST_SIZE = 512

SEAL_FLAGS_MASK = 0xFFFF_FFFF_FFFF_FFFF
"""Attribute flags that a sealing key is bound to, unless the manifest says otherwise."""
SEAL_XFRM_MASK = 0xFFFF_FFFF_FFF9_FF1B
"""XFRM bits that a sealing key is bound to (Gramine's ``sgx.seal_key.xfrm_mask`` default)."""
SEAL_MISC_MASK = 0xFFFF_FFFF
"""MISCSELECT bits that a sealing key is bound to."""

_KEY_REQUEST = Structure(
    "KEYREQUEST",
    KEY_REQUEST_SIZE,
    {
        "key_name": (0, "H"),
        "policy": (2, "H"),
        "isv_svn": (4, "H"),
        "cpu_svn": (8, "16s"),
        "flags_mask": (24, "Q"),
        "xfrm_mask": (32, "Q"),
        "key_id": (40, "32s"),
        "misc_mask": (72, "I"),
        "config_svn": (76, "H"),
    },
)
_DEPENDENCIES = Structure(
    "key dependencies",
    272,
    {
        "key_name": (0, "H"),
        "isv_prod_id": (2, "H"),
        "isv_svn": (4, "H"),
        "config_svn": (6, "H"),
        "policy": (8, "H"),
        "misc_select": (12, "I"),
        "owner_epoch": (16, "16s"),
        "flags": (32, "Q"),
        "xfrm": (40, "Q"),
        "flags_mask": (48, "Q"),
        "xfrm_mask": (56, "Q"),
        "mr_enclave": (64, "32s"),
        "mr_signer": (96, "32s"),
        "key_id": (128, "32s"),
        "cpu_svn": (160, "16s"),
        "misc_mask": (176, "I"),
        "config_id": (192, "64s"),
        "cet_attributes": (256, "B"),
    },
)


class KeyName(enum.IntEnum):
    """KEYREQUEST.KEYNAME values that are implemented."""

    REPORT = 3
    SEAL = 4


class KeyPolicy(enum.IntFlag):
    """KEYREQUEST.KEYPOLICY bits that are implemented."""

    MRENCLAVE = 1
    MRSIGNER = 2


class EnclaveIdentity(NamedTuple):
    """What the processor keeps in SECS about a running enclave (after EINIT)."""

    mr_enclave: bytes
    mr_signer: bytes
    flags: int
    xfrm: int
    misc_select: int
    isv_prod_id: int
    isv_svn: int
    config_id: bytes = bytes(64)
    config_svn: int = 0
    cet_attributes: int = 0
    isv_ext_prod_id: bytes = bytes(16)
    isv_family_id: bytes = bytes(16)

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory may be read from outside."""
        return bool(self.flags & Attribute.DEBUG)


class KeyRequest(NamedTuple):
    """KEYREQUEST: which key an enclave asks for."""

    key_name: int
    policy: int = 0
    isv_svn: int = 0
    cpu_svn: bytes = bytes(16)
    flags_mask: int = 0
    xfrm_mask: int = 0
    key_id: bytes = bytes(32)
    misc_mask: int = 0
    config_svn: int = 0

    def pack(self) -> bytes:
        """Return the 512 bytes."""
        return _KEY_REQUEST.pack(self._asdict())

    @classmethod
    def unpack(cls, data: bytes) -> KeyRequest:
        """Read 512 bytes.

        Raises:
            InputError: the size is not 512.
            KeyRequestError: a reserved byte is not zero (EGETKEY faults).
        """
        if not _KEY_REQUEST.reserved_is_zero(data):
            raise KeyRequestError("KEYREQUEST: reserved bytes are not zero")
        return cls(**_KEY_REQUEST.unpack(data))


@dataclasses.dataclass(frozen=True)
class FusedKeys:
    """What makes one processor different from all others: 16 secret bytes a purpose."""

    seal: bytearray = dataclasses.field(repr=False)
    report: bytearray = dataclasses.field(repr=False)
    owner_epoch: bytearray = dataclasses.field(repr=False)

    def wipe(self) -> None:
        """Overwrite the keys with zeros."""
        for key in (self.seal, self.report, self.owner_epoch):
            key[:] = bytes(len(key))


def derive_key(
    fused: FusedKeys, identity: EnclaveIdentity, request: KeyRequest, *, cpu_svn: bytes
) -> bytes:
    """Do what EGETKEY does for the enclave ``identity``.

    Args:
        fused: the processor's keys.
        identity: the enclave that asks; it cannot ask for another one's keys.
        request: the key it asks for.
        cpu_svn: the processor's present CPUSVN (16 bytes, one component a byte).

    Returns:
        16 bytes.

    Raises:
        KeyRequestError: unknown key or policy, or a version newer than the present one.
    """
    if request.key_name == KeyName.REPORT:
        return _prf(fused.report, _report_dependencies(fused, identity, request, cpu_svn))
    if request.key_name == KeyName.SEAL:
        _check_seal_request(identity, request, cpu_svn)
        return _prf(fused.seal, _seal_dependencies(fused, identity, request))
    raise KeyRequestError(f"KEYREQUEST: key name {request.key_name} is not REPORT (3) or SEAL (4)")


def report_key_for_target(
    fused: FusedKeys, target: TargetInfo, *, key_id: bytes, cpu_svn: bytes
) -> bytes:
    """Return the 16-byte report key of ``target``, as EREPORT uses it to make a MAC."""
    identity = EnclaveIdentity(
        mr_enclave=target.mr_enclave,
        mr_signer=bytes(32),
        flags=target.flags,
        xfrm=target.xfrm,
        misc_select=target.misc_select,
        isv_prod_id=0,
        isv_svn=0,
        config_id=target.config_id,
        config_svn=target.config_svn,
        cet_attributes=target.cet_attributes,
    )
    request = KeyRequest(key_name=KeyName.REPORT, key_id=key_id)
    return derive_key(fused, identity, request, cpu_svn=cpu_svn)


def _check_seal_request(identity: EnclaveIdentity, request: KeyRequest, cpu_svn: bytes) -> None:
    known = int(KeyPolicy.MRENCLAVE | KeyPolicy.MRSIGNER)
    if request.policy | known != known:
        raise KeyRequestError(f"KEYREQUEST: policy bits {request.policy:#x} are not implemented")
    if request.isv_svn > identity.isv_svn:
        raise KeyRequestError(
            f"KEYREQUEST: ISVSVN {request.isv_svn} is newer than the enclave's {identity.isv_svn}"
        )
    if request.config_svn > identity.config_svn:
        raise KeyRequestError(
            f"KEYREQUEST: CONFIGSVN {request.config_svn} is newer than the enclave's"
            f" {identity.config_svn}"
        )
    if any(asked > present for asked, present in zip(request.cpu_svn, cpu_svn, strict=True)):
        raise KeyRequestError("KEYREQUEST: CPUSVN is newer than the processor's")


def _report_dependencies(
    fused: FusedKeys, identity: EnclaveIdentity, request: KeyRequest, cpu_svn: bytes
) -> bytes:
    return _DEPENDENCIES.pack(
        {
            "key_name": KeyName.REPORT,
            "owner_epoch": bytes(fused.owner_epoch),
            "flags": identity.flags,
            "xfrm": identity.xfrm,
            "mr_enclave": identity.mr_enclave,
            "key_id": request.key_id,
            "cpu_svn": cpu_svn,
            "misc_select": identity.misc_select,
            "config_id": identity.config_id,
            "config_svn": identity.config_svn,
            "cet_attributes": identity.cet_attributes,
        }
    )


def _seal_dependencies(fused: FusedKeys, identity: EnclaveIdentity, request: KeyRequest) -> bytes:
    # INIT and DEBUG are never masked away: a debug enclave must not get a production key.
    always_bound = Attribute.INIT | Attribute.DEBUG
    by_enclave = bool(request.policy & KeyPolicy.MRENCLAVE)
    by_signer = bool(request.policy & KeyPolicy.MRSIGNER)
    return _DEPENDENCIES.pack(
        {
            "key_name": KeyName.SEAL,
            "policy": request.policy,
            "isv_prod_id": identity.isv_prod_id,
            "isv_svn": request.isv_svn,
            "config_svn": request.config_svn,
            "owner_epoch": bytes(fused.owner_epoch),
            "flags": identity.flags & (request.flags_mask | always_bound),
            "xfrm": identity.xfrm & request.xfrm_mask,
            "flags_mask": request.flags_mask,
            "xfrm_mask": request.xfrm_mask,
            "mr_enclave": identity.mr_enclave if by_enclave else bytes(32),
            "mr_signer": identity.mr_signer if by_signer else bytes(32),
            "key_id": request.key_id,
            "cpu_svn": request.cpu_svn,
            "misc_select": identity.misc_select & request.misc_mask,
            "misc_mask": request.misc_mask,
        }
    )


def _prf(key: bytearray, message: bytes) -> bytes:
    cmac = CMAC(AES128(key))
    cmac.update(message)
    return cmac.finalize()
