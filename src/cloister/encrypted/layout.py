"""The bytes of an encrypted file: constants, tables, node numbers, key derivation, node cipher.

Pure: bytes and keys in, bytes out, no files, clocks or randomness. Source of every fact: the
Graphene "protected files" format (major version 1) and the Gramine "encrypted files" format
(major version 2). All integers are little endian, all structures packed.

An encrypted file is an array of 4096-byte *nodes*. Node 0 holds the metadata and the first 3072
bytes of content. Longer files continue with a tree: *MHT nodes* (Merkle hash tree) hold the key
and the authentication tag of 96 *data nodes* and of 32 child MHT nodes each::

    0 metadata | 1 MHT 0 (root) | 2..97 data 0..95 | 98 MHT 1 | 99..194 data 96..191 | 195 MHT 2 ...
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from cloister.encrypted.constants import (
    CHILDREN_PER_MHT,
    DATA_PER_MHT,
    ENTRY_SIZE,
    GRAMINE_VERSION,
    GRAPHENE_VERSION,
    HEAD_SIZE,
    IV,
    KDF_LABEL,
    KEY_SIZE,
    MAGIC,
    MINOR_VERSION,
    NODE_SIZE,
    PATH_FIELD_SIZE,
    PENDING_WRITE,
    TAG_SIZE,
)


class Field(NamedTuple):
    """Where a field lies, in bytes from the start of its structure."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte behind the field."""
        return self.offset + self.size


class Table:
    """A packed little-endian structure: field name -> struct format, in order."""

    def __init__(self, formats: dict[str, str]) -> None:
        self._struct = struct.Struct("<" + "".join(formats.values()))
        self.fields: dict[str, Field] = {}
        offset = 0
        for name, code in formats.items():
            self.fields[name] = Field(offset, struct.calcsize("<" + code))
            offset += self.fields[name].size
        self.size = offset

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Return the fields that stand at the start of ``data``, by name."""
        return dict(zip(self.fields, self.values(data), strict=True))

    def values(self, data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
        """Return the fields that stand at the start of ``data``, in the table's order."""
        return self._struct.unpack_from(data)

    def pack(self, **values: Any) -> bytes:
        """Return the structure; byte strings are padded with zeros to their field."""
        return self._struct.pack(*(values[name] for name in self.fields))


_HEADER: Final = {"magic": "8s", "major": "B", "minor": "B", "nonce": "32s", "tag": "16s"}

HEADERS: Final[dict[int, Table]] = {
    GRAPHENE_VERSION: Table(_HEADER),
    GRAMINE_VERSION: Table({**_HEADER, "flags": "B"}),
}
"""Plain start of node 0, by major version. The encrypted part follows at once."""
_MAJOR_OFFSET: Final = HEADERS[GRAMINE_VERSION].fields["major"].offset

METADATA: Final = Table(
    {
        "path": f"{PATH_FIELD_SIZE}s",
        "size": "Q",
        "root_key": f"{KEY_SIZE}s",
        "root_tag": f"{TAG_SIZE}s",
        "head": f"{HEAD_SIZE}s",
    }
)
"""Plaintext of the encrypted part of node 0."""

PENDING_MARK: Final = Field(8, HEADERS[GRAMINE_VERSION].size - 8)
"""The bytes (major version .. flags) that mark a file as being written; inside one disk sector."""


class Header(NamedTuple):
    """The plain, unauthenticated start of node 0."""

    magic: bytes
    major: int
    minor: int
    nonce: bytes
    tag: bytes
    flags: int = 0

    @property
    def pending_write(self) -> bool:
        """Whether a write was begun and not finished: the file needs its recovery file."""
        return bool(self.flags & PENDING_WRITE)


class Metadata(NamedTuple):
    """The authenticated content of node 0.

    ``path`` is the embedded path without its padding; ``size`` counts plaintext bytes; ``root_*``
    open MHT node 0 and are zero in files of at most 3072 bytes; ``head`` is 3072 bytes.
    """

    path: bytes
    size: int
    root_key: bytes
    root_tag: bytes
    head: bytes


EMPTY_METADATA: Final = Metadata(b"", 0, bytes(KEY_SIZE), bytes(TAG_SIZE), bytes(HEAD_SIZE))


class NodeAuthenticationError(Exception):
    """A node does not fit its key and tag.

    Args:
        index: which node of the run that was to be opened, counted from 0.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"node {index} of the run does not authenticate")
        self.index = index


# --- Node numbers -----------------------------------------------------------------------------


def data_node(index: int) -> int:
    """Return the physical node of data node ``index``."""
    return index + 2 + index // DATA_PER_MHT


def mht_node(index: int) -> int:
    """Return the physical node of MHT node ``index`` (0 is the root)."""
    return 1 + (DATA_PER_MHT + 1) * index


def mht_parent(index: int) -> tuple[int, int]:
    """Return the parent of MHT node ``index`` > 0 and the entry there that describes it."""
    return (index - 1) // CHILDREN_PER_MHT, DATA_PER_MHT + (index - 1) % CHILDREN_PER_MHT


def data_count(size: int) -> int:
    """Return the number of data nodes of a file of ``size`` plaintext bytes."""
    return 0 if size <= HEAD_SIZE else -(-(size - HEAD_SIZE) // NODE_SIZE)


def mht_count(size: int) -> int:
    """Return the number of MHT nodes of a file of ``size`` plaintext bytes."""
    return -(-data_count(size) // DATA_PER_MHT)


def host_nodes(size: int) -> int:
    """Return the number of nodes of a file of ``size`` plaintext bytes."""
    return 1 + data_count(size) + mht_count(size)


def node_role(node: int) -> tuple[str, int]:
    """Return what physical ``node`` holds: ``metadata`` 0, ``mht`` m or ``data`` d."""
    if node == 0:
        return "metadata", 0
    group, place = divmod(node - 1, DATA_PER_MHT + 1)
    return ("mht", group) if place == 0 else ("data", group * DATA_PER_MHT + place - 1)


# --- Node 0 -----------------------------------------------------------------------------------


def parse_header(node: bytes) -> Header:
    """Return the plain start of node 0; the caller judges magic and version.

    Args:
        node: at least 59 bytes. A major version that is not known is read as version 2.
    """
    major = node[_MAJOR_OFFSET]
    return Header(*HEADERS[major if major in HEADERS else GRAMINE_VERSION].values(node))


def metadata_key(wrap_key: bytes, nonce: bytes) -> bytes:
    """Derive the key of node 0: NIST SP 800-108 counter mode over AES-128-CMAC, one block."""
    cmac = CMAC(AES(wrap_key))
    cmac.update(struct.pack("<I64s32sI", 1, KDF_LABEL, nonce, 0x80))
    return cmac.finalize()


def seal_metadata(metadata: Metadata, wrap_key: bytes, nonce: bytes, version: int) -> bytes:
    """Return node 0, 4096 bytes.

    Args:
        metadata: the content; ``path`` at most 771 bytes.
        wrap_key: 16 bytes.
        nonce: 32 bytes that were never used with this wrap key.
        version: the major version, 1 or 2.
    """
    plain = METADATA.pack(**metadata._asdict())
    sealed = AESGCM(metadata_key(wrap_key, nonce)).encrypt(IV, plain, None)
    header = HEADERS[version].pack(
        magic=MAGIC,
        major=version,
        minor=MINOR_VERSION,
        nonce=nonce,
        tag=sealed[METADATA.size :],
        flags=0,
    )
    return (header + sealed[: METADATA.size]).ljust(NODE_SIZE, b"\0")


def open_metadata(node: bytes, wrap_key: bytes) -> Metadata:
    """Decrypt node 0.

    Args:
        node: 4096 bytes with a known major version.
        wrap_key: 16 bytes.

    Raises:
        NodeAuthenticationError: the key is wrong or the node was changed; nobody can tell which.
    """
    header = parse_header(node)
    start = HEADERS[header.major].size
    sealed = node[start : start + METADATA.size] + header.tag
    try:
        plain = AESGCM(metadata_key(wrap_key, header.nonce)).decrypt(IV, sealed, None)
    except InvalidTag:
        raise NodeAuthenticationError(0) from None
    metadata = Metadata(*METADATA.values(plain))
    return metadata._replace(path=metadata.path.split(b"\0", 1)[0])


def mark_pending(node: bytes) -> bytes:
    """Return node 0 with its pending-write flag set; a version 1 node becomes a version 2 one.

    Only bytes of :data:`PENDING_MARK` differ. The node cannot be opened afterwards if it was of
    version 1: the mark says that it is to be replaced from the recovery file anyway.
    """
    marked = bytearray(node)
    fields = HEADERS[GRAMINE_VERSION].fields
    was_current = marked[fields["major"].offset] == GRAMINE_VERSION
    flags = marked[fields["flags"].offset] if was_current else 0
    marked[fields["major"].offset] = GRAMINE_VERSION
    marked[fields["flags"].offset] = flags | PENDING_WRITE
    return bytes(marked)


def clear_pending(node: bytes) -> bytes:
    """Return a version 2 node 0 with its pending-write flag cleared; others unchanged."""
    header = parse_header(node)
    if header.major != GRAMINE_VERSION:
        return node
    cleared = bytearray(node)
    cleared[HEADERS[GRAMINE_VERSION].fields["flags"].offset] &= ~PENDING_WRITE & 0xFF
    return bytes(cleared)


# --- Data and MHT nodes -------------------------------------------------------------------------


def entry_field(slot: int) -> Field:
    """Return where entry ``slot`` (0..95 data, 96..127 child MHT) lies in an MHT node."""
    return Field(slot * ENTRY_SIZE, ENTRY_SIZE)


def seal_node(key: bytes, plain: bytes | bytearray | memoryview) -> bytes:
    """Encrypt one node: 4096 bytes of ciphertext and the 16-byte tag behind them."""
    return AESGCM(key).encrypt(IV, plain, None)


def open_node(entry: bytes, cipher: bytes) -> bytes:
    """Decrypt one 4096-byte node with its ``entry`` (key, tag).

    Raises:
        NodeAuthenticationError: the node does not fit the entry.
    """
    try:
        return AESGCM(entry[:KEY_SIZE]).decrypt(IV, cipher + entry[KEY_SIZE:ENTRY_SIZE], None)
    except InvalidTag:
        raise NodeAuthenticationError(0) from None
