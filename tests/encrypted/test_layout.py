"""Tables, node numbers and the cipher of single nodes, against a second implementation."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encrypted import layout
from cloister.encrypted.constants import NODE_SIZE
from cloister.encrypted.layout import HEADERS, METADATA, Metadata

SIZES = st.integers(0, 1 << 45)


def test_tables_have_the_published_offsets() -> None:
    published = {"magic": 0, "major": 8, "minor": 9, "nonce": 10, "tag": 42}
    assert {name: field.offset for name, field in HEADERS[1].fields.items()} == published
    assert HEADERS[1].size == 58
    assert {name: field.offset for name, field in HEADERS[2].fields.items()} == {
        **published,
        "flags": 58,
    }
    assert HEADERS[2].size == 59
    offsets = {name: field.offset for name, field in METADATA.fields.items()}
    assert offsets == {"path": 0, "size": 772, "root_key": 780, "root_tag": 796, "head": 812}
    assert METADATA.size == 3884


def numbers_by_walking(data_nodes: int) -> tuple[list[int], list[int]]:
    """Number nodes by laying them down one after the other: a group's MHT node, then its data."""
    data, mht, following = [], [], 1
    for index in range(data_nodes):
        if index % 96 == 0:
            mht.append(following)
            following += 1
        data.append(following)
        following += 1
    return data, mht


def test_node_numbers_are_those_of_the_walk() -> None:
    data, mht = numbers_by_walking(96 * 34 + 5)
    assert [layout.data_node(i) for i in range(len(data))] == data
    assert [layout.mht_node(i) for i in range(len(mht))] == mht
    for index, node in enumerate(data):
        assert layout.node_role(node) == ("data", index)
    for index, node in enumerate(mht):
        assert layout.node_role(node) == ("mht", index)
    assert layout.node_role(0) == ("metadata", 0)


def test_every_mht_node_has_one_place_in_its_parent() -> None:
    places = [layout.mht_parent(index) for index in range(1, 1 + 32 + 32 * 32)]
    assert len(set(places)) == len(places)
    assert all(96 <= slot < 128 for _, slot in places)
    assert [parent for parent, _ in places] == [i // 32 for i in range(len(places))]


@given(SIZES)
def test_a_file_has_just_the_nodes_that_its_size_needs(size: int) -> None:
    nodes = layout.host_nodes(size)
    if size <= 3072:
        assert nodes == 1
        return
    last = (size - 1 - 3072) // 4096
    assert nodes == last + 3 + last // 96
    assert layout.data_node(layout.data_count(size) - 1) == nodes - 1
    assert layout.mht_count(size) == last // 96 + 1


def cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC (RFC 4493) over the block cipher alone."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    def block(data: bytes) -> bytes:
        encryptor = Cipher(AES(key), ECB()).encryptor()
        return encryptor.update(data)

    def double(value: bytes) -> bytes:
        number = int.from_bytes(value, "big") << 1
        return ((number & (1 << 128) - 1) ^ (0x87 if number >> 128 else 0)).to_bytes(16, "big")

    first = double(block(bytes(16)))
    rest = len(message) % 16
    last = message[-rest:] + b"\x80" + bytes(15 - rest) if rest or not message else message[-16:]
    mask = double(first) if rest or not message else first
    state = bytes(16)
    body = message[: len(message) - (rest or 16)]
    for start in range(0, len(body), 16):
        state = block(bytes(a ^ b for a, b in zip(state, body[start : start + 16], strict=True)))
    return block(bytes(a ^ b ^ c for a, b, c in zip(state, last, mask, strict=True)))


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_metadata_key_is_a_cmac_of_the_derivation_block(key: bytes, nonce: bytes) -> None:
    label = b"SGX-PROTECTED-FS-METADATA-KEY"
    block = b"\1\0\0\0" + label + bytes(64 - len(label)) + nonce + b"\x80\0\0\0"
    assert len(block) == 104
    assert hmac.compare_digest(layout.metadata_key(key, nonce), cmac(key, block))


@given(
    st.binary(max_size=771).filter(lambda path: b"\0" not in path),
    st.integers(0, 2**64 - 1),
    st.sampled_from([1, 2]),
    st.binary(max_size=3072),
)
def test_metadata_comes_back(path: bytes, size: int, version: int, head: bytes) -> None:
    metadata = Metadata(path, size, b"k" * 16, b"t" * 16, head.ljust(3072, b"\0"))
    node = layout.seal_metadata(metadata, b"w" * 16, b"n" * 32, version)
    assert len(node) == NODE_SIZE
    assert layout.open_metadata(node, b"w" * 16) == metadata
    with pytest.raises(layout.NodeAuthenticationError):
        layout.open_metadata(node, b"x" * 16)
    header = layout.parse_header(node)
    assert (header.magic, header.major, header.minor) == (b"GRAFS_PF", version, 0)
    assert not header.pending_write


def test_structures_and_tables_name_the_same_fields_in_the_same_order() -> None:
    assert tuple(layout.HEADERS[2].fields) == layout.Header._fields
    assert (*layout.HEADERS[1].fields, "flags") == layout.Header._fields
    assert tuple(layout.METADATA.fields) == Metadata._fields


@pytest.mark.parametrize("version", [1, 2])
def test_the_mark_changes_one_sector_and_goes_away_again(version: int) -> None:
    metadata = Metadata(b"p", 5, bytes(16), bytes(16), bytes(3072))
    node = layout.seal_metadata(metadata, b"w" * 16, hashlib.sha256(b"n").digest(), version)
    marked = layout.mark_pending(node)
    changed = [i for i in range(NODE_SIZE) if node[i] != marked[i]]
    field = layout.PENDING_MARK
    assert all(field.offset <= i < field.end <= 512 for i in changed)
    assert layout.parse_header(marked).pending_write
    assert marked[8] == 2
    assert marked[58] & 1
    assert marked[: field.offset] + node[field.offset : field.end] + marked[field.end :] == node
    if version == 2:
        assert layout.clear_pending(marked) == node
