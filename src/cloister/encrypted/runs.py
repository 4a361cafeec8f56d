"""Neighbouring nodes, enciphered together: one read, one write, no copies in between.

AES-GCM takes a node's 16-byte tag right behind its ciphertext, but in the file the next node lies
there. So nodes are decrypted last to first, each tag put over the node that was just done; and
encrypted first to last, each tag taken away before the next node is put over it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.encrypted.constants import ENTRY_SIZE, IV, KEY_SIZE, NODE_SIZE, TAG_SIZE
from cloister.encrypted.layout import NodeAuthenticationError

RUN_NODES: Final = 24  # 96 KiB: a run and its plaintext stay in the processor's nearer caches
_KEY: Final = struct.Struct(f"{KEY_SIZE}s")
_ENTRY: Final = struct.Struct(f"{KEY_SIZE}s{TAG_SIZE}s")


class RunBuffer:
    """Room for the ciphertext of up to 24 neighbouring nodes, and the views that work needs.

    ``cipher`` is the ciphertext: fill it before :meth:`open`, write it after :meth:`seal`.
    ``plain`` is room for the plaintext, and ``plain_nodes`` its nodes, for who has none.
    """

    def __init__(self) -> None:
        self.cipher = memoryview(bytearray(RUN_NODES * NODE_SIZE + TAG_SIZE))
        self.plain = memoryview(bytearray(RUN_NODES * NODE_SIZE))
        self.plain_nodes = [
            self.plain[start : start + NODE_SIZE] for start in range(0, len(self.plain), NODE_SIZE)
        ]
        ends = [(i + 1) * NODE_SIZE for i in range(RUN_NODES)]
        self._sealed = [self.cipher[end - NODE_SIZE : end + TAG_SIZE] for end in ends]
        self._tags = [self.cipher[end : end + TAG_SIZE] for end in ends]

    def seal(self, keys: bytes, nodes: Sequence[bytes | bytearray | memoryview]) -> bytes:
        """Encrypt nodes into ``cipher``; return their entries (key, tag), 32 bytes each.

        Args:
            keys: 16 fresh random bytes for each node.
            nodes: 4096 bytes each, at most 24.
        """
        entries: list[bytes] = []
        iv = IV
        for (key,), node, sealed, tag in zip(
            _KEY.iter_unpack(keys), nodes, self._sealed, self._tags, strict=False
        ):
            AESGCM(key).encrypt_into(iv, node, None, sealed)
            entries.append(key)
            entries.append(tag.tobytes())
        return b"".join(entries)

    def open(self, entries: bytes, targets: Sequence[memoryview]) -> None:
        """Decrypt the first nodes of ``cipher``, which is destroyed.

        Args:
            entries: key and tag of each node, 32 bytes each.
            targets: where each node's 4096 plaintext bytes go.

        Raises:
            NodeAuthenticationError: a node does not fit its entry; its target is zeroed.
        """
        index = count = len(entries) // ENTRY_SIZE
        iv = IV
        backwards = zip(
            reversed([*_ENTRY.iter_unpack(entries)]),
            reversed(self._tags[:count]),
            reversed(self._sealed[:count]),
            reversed(targets[:count]),
            strict=True,
        )
        try:
            for (key, tag), place, sealed, target in backwards:
                index -= 1
                place[:] = tag
                AESGCM(key).decrypt_into(iv, sealed, None, target)
        except InvalidTag:
            targets[index][:] = bytes(NODE_SIZE)  # the library leaves what it deciphered there
            raise NodeAuthenticationError(index) from None


_own = threading.local()


def run_buffer() -> RunBuffer:
    """Return this thread's buffer: its content lasts until the next call that may use it."""
    buffer = getattr(_own, "buffer", None)
    if buffer is None:
        buffer = _own.buffer = RunBuffer()
    return buffer
