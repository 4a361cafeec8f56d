"""Sizes, names and limits of the encrypted files format; see :mod:`cloister.encrypted.layout`."""

from __future__ import annotations

import struct
from typing import Final

NODE_SIZE: Final = 4096
MAGIC: Final = b"GRAFS_PF"
GRAPHENE_VERSION: Final = 1
GRAMINE_VERSION: Final = 2
VERSIONS: Final = (GRAPHENE_VERSION, GRAMINE_VERSION)
MINOR_VERSION: Final = 0

KEY_SIZE: Final = 16
TAG_SIZE: Final = 16
NONCE_SIZE: Final = 32
PATH_FIELD_SIZE: Final = 772
MAX_PATH: Final = PATH_FIELD_SIZE - 1  # the string is NUL terminated
HEAD_SIZE: Final = 3072  # content bytes that live in node 0
DATA_PER_MHT: Final = 96
CHILDREN_PER_MHT: Final = 32
ENTRY_SIZE: Final = KEY_SIZE + TAG_SIZE

PENDING_WRITE: Final = 0x01  # feature flag, version 2: a write was begun and not finished
IV: Final = bytes(12)  # constant: every key encrypts exactly one node
KDF_LABEL: Final = b"SGX-PROTECTED-FS-METADATA-KEY".ljust(64, b"\0")

RECOVERY_SUFFIX: Final = ".gramine.recovery"
RECOVERY_NUMBER: Final = struct.Struct("<Q")
RECOVERY_RECORD_SIZE: Final = RECOVERY_NUMBER.size + NODE_SIZE
