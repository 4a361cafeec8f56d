"""The Secret Provisioning protocol, byte for byte (Graphene and Gramine, identical in both).

Over TLS with a client certificate that carries evidence:

1. client to server: :data:`REQUEST`, 35 bytes;
2. server to client: a head of 41 bytes, :data:`RESPONSE_MAGIC` and the secret's size (u32, big
   endian), then exactly that many bytes;
3. close_notify.
"""

from __future__ import annotations

import struct

from cloister.errors import ProtocolError

REQUEST = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
RESPONSE_MAGIC = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"
RESPONSE_HEAD_SIZE = len(RESPONSE_MAGIC) + 4
MAX_SECRET_SIZE = 1024 * 1024
"""Longest secret that is sent or received, in bytes."""

_SIZE = struct.Struct(">I")


def encode_head(secret_size: int) -> bytes:
    """Return the 41 bytes in front of a secret.

    Raises:
        ProtocolError: the size is 0 or above :data:`MAX_SECRET_SIZE`.
    """
    _require_size(secret_size)
    return RESPONSE_MAGIC + _SIZE.pack(secret_size)


def decode_head(head: bytes) -> int:
    """Return the secret's size from the 41 bytes in front of it.

    Raises:
        ProtocolError: wrong magic, or a size of 0 or above :data:`MAX_SECRET_SIZE`.
    """
    if len(head) != RESPONSE_HEAD_SIZE or not head.startswith(RESPONSE_MAGIC):
        raise ProtocolError(
            "the server's answer does not begin with the Secret Provisioning response magic",
            hint="is there another kind of server at that address?",
        )
    (size,) = _SIZE.unpack_from(head, len(RESPONSE_MAGIC))
    _require_size(size)
    return int(size)


def check_request(data: bytes) -> None:
    """Check a client's request.

    Raises:
        ProtocolError: it is not :data:`REQUEST`.
    """
    if data != REQUEST:
        raise ProtocolError("the request is not SECRET_PROVISION_RA_TLS_REQUEST_V1")


def _require_size(size: int) -> None:
    if not 0 < size <= MAX_SECRET_SIZE:
        raise ProtocolError(f"secret of {size} bytes, expected 1 to {MAX_SECRET_SIZE}")
