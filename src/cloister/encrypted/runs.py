"""Neighbouring nodes, enciphered together: one read, one write, no copies in between.

AES-GCM takes a node's 16-byte tag right behind its ciphertext, but in the file the next node lies
there. To be decrypted, nodes are scattered by the kernel into slots with room for a tag behind
each. To be encrypted they lie close together: first to last, each tag is taken away before the
next node is put over it.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.encrypted.constants import ENTRY_SIZE, IV, KEY_SIZE, NODE_SIZE, TAG_SIZE
from cloister.encrypted.layout import NodeAuthenticationError

RUN_NODES: Final = 24  # 96 KiB: a run and its plaintext stay in the processor's nearer caches
_SLOT: Final = NODE_SIZE + TAG_SIZE
_WORD: Final = 8  # a memoryview takes strides of words, so that one assignment moves all tags


class RunBuffer:
    """Room for the ciphertext of up to 24 neighbouring nodes, and the views that work needs.

    ``slots`` take the ciphertext of each node before :meth:`open`; ``cipher`` is the ciphertext
    of all, to be written after :meth:`seal`. They share their memory. ``plain`` is room for the
    plaintext, and ``plain_nodes`` its nodes, for who has none.
    """

    def __init__(self) -> None:
        room = memoryview(bytearray(RUN_NODES * _SLOT))
        nodes = range(RUN_NODES)
        self.cipher = room[: RUN_NODES * NODE_SIZE]
        self.plain = memoryview(bytearray(RUN_NODES * NODE_SIZE))
        self.plain_nodes = [self.plain[i * NODE_SIZE : (i + 1) * NODE_SIZE] for i in nodes]
        self.slots = [room[i * _SLOT : i * _SLOT + NODE_SIZE] for i in nodes]
        self._tagged_slots = [room[i * _SLOT : (i + 1) * _SLOT] for i in nodes]
        self._slot_tags = [room.cast("Q")[NODE_SIZE // _WORD + i :: _SLOT // _WORD] for i in (0, 1)]
        self._sealed = [room[i * NODE_SIZE : i * NODE_SIZE + _SLOT] for i in nodes]
        self._tags = [sealed[NODE_SIZE:] for sealed in self._sealed]

    def seal(self, keys: bytes, nodes: Sequence[bytes | bytearray | memoryview]) -> bytes:
        """Encrypt nodes into ``cipher``; return their entries (key, tag), 32 bytes each.

        Args:
            keys: 16 fresh random bytes for each node.
            nodes: 4096 bytes each, at most 24.
        """
        entries: list[bytes] = []
        iv = IV
        for key, node, sealed, tag in zip(
            _split(len(nodes), f"{KEY_SIZE}s").unpack(keys),
            nodes,
            self._sealed,
            self._tags,
            strict=False,
        ):
            AESGCM(key).encrypt_into(iv, node, None, sealed)
            entries.append(key)
            entries.append(tag.tobytes())
        return b"".join(entries)

    def open(self, entries: bytes, targets: Sequence[memoryview]) -> None:
        """Decrypt the first nodes in ``slots``.

        Args:
            entries: key and tag of each node, 32 bytes each.
            targets: where each node's 4096 plaintext bytes go.

        Raises:
            NodeAuthenticationError: a node does not fit its entry; its target is zeroed.
        """
        count = len(entries) // ENTRY_SIZE
        words = memoryview(entries).cast("Q")
        for i, tags in enumerate(self._slot_tags):
            tags[:count] = words[KEY_SIZE // _WORD + i :: ENTRY_SIZE // _WORD]
        keys = _split(count, f"{KEY_SIZE}s{TAG_SIZE}x").unpack(entries)
        iv = IV
        try:
            for aes, sealed, target in zip(
                map(AESGCM, keys), self._tagged_slots, targets, strict=False
            ):
                aes.decrypt_into(iv, sealed, None, target)
        except InvalidTag:
            target[:] = bytes(NODE_SIZE)  # the library leaves what it deciphered there
            index = next(i for i, each in enumerate(targets) if each is target)
            raise NodeAuthenticationError(index) from None


@functools.cache
def _split(count: int, item: str) -> struct.Struct:
    """Return the structure that takes ``count`` items apart in one step."""
    return struct.Struct(item * count)


_own = threading.local()


def run_buffer() -> RunBuffer:
    """Return this thread's buffer: its content lasts until the next call that may use it."""
    buffer = getattr(_own, "buffer", None)
    if buffer is None:
        buffer = _own.buffer = RunBuffer()
    return buffer
