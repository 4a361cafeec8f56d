"""The index of trusted files: round trip, bounds, and the digest that guards it."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import TrustedIndexError
from cloister.manifest.index import (
    CHUNK_SIZE,
    UNKNOWN_SIZE,
    TrustedEntry,
    TrustedIndex,
    chunk_digest,
    write_index,
)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def load(data: bytes) -> TrustedIndex:
    return TrustedIndex.load(data, sha256(data))


def entry(size: int, seed: int = 0) -> TrustedEntry:
    chunks = hashlib.shake_256(bytes([seed % 256])).digest(-(-size // CHUNK_SIZE) * 32)
    return TrustedEntry(size, sha256(bytes([seed % 256])), chunks)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
ONLY_HASHES = st.just(TrustedEntry(UNKNOWN_SIZE, sha256(b"x"), b""))
WITHOUT_WHOLE = st.builds(
    lambda size: entry(size)._replace(sha256=b""), st.integers(0, 5 * CHUNK_SIZE)
)
WITH_CHUNKS = st.builds(entry, st.integers(0, 5 * CHUNK_SIZE), st.integers(0, 255))
ENTRIES = st.dictionaries(NAMES, st.one_of(WITH_CHUNKS, ONLY_HASHES, WITHOUT_WHOLE), max_size=20)


def test_digests_of_chunks_are_blake3() -> None:
    """Against the test vectors that were published with BLAKE3."""
    chunk = bytes(n % 251 for n in range(CHUNK_SIZE))
    expected = "68d647e619a930e7b1082f74f334b0c65a315725569bdc123f0ee11881717bfe"
    assert chunk_digest(chunk).hex() == expected
    expected = "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    assert chunk_digest(chunk[:1]).hex() == expected


@given(ENTRIES)
def test_round_trip(entries: dict[str, TrustedEntry]) -> None:
    index = load(write_index(entries))
    assert {path: index.lookup(path) for path in index} == entries
    assert len(index) == len(entries)
    assert index.lookup("\0") is None
    assert dict(index.entries()) == entries
    assert all(index.lookup(path + "x") == entries.get(path + "x") for path in entries)


@given(ENTRIES)
def test_bytes_do_not_depend_on_the_order(entries: dict[str, TrustedEntry]) -> None:
    turned = dict(reversed(entries.items()))
    assert write_index(turned) == write_index(entries)


def test_names_that_are_not_utf8() -> None:
    name = b"latin-\xe9".decode("utf-8", "surrogateescape")
    assert load(write_index({name: entry(1)})).lookup(name) == entry(1)


def test_another_digest_is_refused() -> None:
    data = write_index({"a": entry(1)})
    with pytest.raises(TrustedIndexError, match="SHA-256"):
        TrustedIndex.load(data, sha256(data + b"x"))
    with pytest.raises(TrustedIndexError, match="SHA-256"):
        TrustedIndex.load(data[:-1] + b"x", sha256(data))


@given(st.data())
def test_signed_nonsense_never_gives_more_than_an_error(data: st.DataObject) -> None:
    """Even with the right digest, a broken layout is refused, at once or at lookup."""
    raw = bytearray(write_index({f"f{i}": entry(i * 40000, i) for i in range(4)}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    try:
        index = load(bytes(raw[:cut]))
        for path in index:
            found = index.lookup(path)  # None where the names are in disorder
            if found is not None and found.size != UNKNOWN_SIZE:
                assert len(found.chunks) == -(-found.size // CHUNK_SIZE) * 32
    except TrustedIndexError:
        pass


def test_an_index_of_another_version_says_to_build_again() -> None:
    data = bytearray(write_index({"a": entry(1)}))
    data[8:12] = (1).to_bytes(4, "little")
    with pytest.raises(TrustedIndexError, match="version 1, expected 3") as caught:
        load(bytes(data))
    assert "build again" in str(caught.value.hint)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(TrustedIndexError):
        load(data)


def test_without_index_only_whole_hashes_are_known() -> None:
    index = TrustedIndex.from_hashes({"./a//b": sha256(b"x"), "/lib/c": sha256(b"y")})
    assert index.lookup("a/b") == TrustedEntry(UNKNOWN_SIZE, sha256(b"x"), b"")
    assert index.lookup("/lib/c") == TrustedEntry(UNKNOWN_SIZE, sha256(b"y"), b"")
    assert index.lookup("./a/b") is None
    assert len(index) == 2


@pytest.mark.parametrize(
    "bad",
    [
        TrustedEntry(1, bytes(32), b""),
        TrustedEntry(UNKNOWN_SIZE, bytes(32), bytes(32)),
        TrustedEntry(UNKNOWN_SIZE, b"", b""),
    ],
)
def test_digests_must_fit(bad: TrustedEntry) -> None:
    with pytest.raises(ValueError, match="cannot be put"):
        write_index({"a": bad})


def test_loading_27000_files_is_quick() -> None:
    entries = {
        f"/usr/lib/python3/site-packages/torch/d{i % 97}/m{i}.py": entry(900, i)
        for i in range(27000)
    }
    data = write_index(entries)
    digest = sha256(data)
    best = min(_seconds(data, digest) for _ in range(5))
    assert best < 0.1, "27,000 files must load in a few hundredths of a second"


def _seconds(data: bytes, digest: bytes) -> float:
    start = time.process_time()
    TrustedIndex.load(data, digest)
    return time.process_time() - start
