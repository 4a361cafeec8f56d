"""Random access: whatever is done to an encrypted file, it holds what a plain one would."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloister.encrypted.backing import Backing, MemoryBacking, StreamBacking
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.file import EncryptedFile, probe
from cloister.encrypted.layout import host_nodes, parse_header
from cloister.errors import EmbeddedPathError, InputError, InUseError, RenamedError, WrapKeyError

KEY = bytes(range(16))
GROUP = 96 * 4096
EDGES = [0, 1, 3071, 3072, 3073, 7167, 7168, 7169, 3072 + GROUP - 1, 3072 + GROUP, 3072 + GROUP + 1]
PLACES = st.one_of(st.sampled_from(EDGES), st.integers(0, 30_000), st.integers(0, 3 * GROUP))


class AgainstAPlainFile(RuleBasedStateMachine):
    """One encrypted file and one in-memory file, with the same done to both."""

    @initialize(
        limit=st.sampled_from([1, 2, 7, 100, 2560]),
        version=st.sampled_from([1, 2]),
        stream=st.booleans(),
    )
    def start(self, limit: int, version: int, stream: bool) -> None:
        self.backing: Backing = StreamBacking(io.BytesIO()) if stream else MemoryBacking()
        self.limit = limit
        self.version = version
        self.plain = io.BytesIO()
        self.file = EncryptedContent.create(
            self.backing, KEY, "f", name="f", version=version, waiting_limit=limit
        )

    @rule(offset=PLACES, length=st.integers(0, 20_000), seed=st.integers(0, 255))
    def write(self, offset: int, length: int, seed: int) -> None:
        data = bytes((seed + i * 7) % 256 for i in range(length))
        self.file.write(offset, data)
        if data:
            size = len(self.plain.getbuffer())
            self.plain.seek(size)
            self.plain.write(bytes(max(0, offset - size)))
            self.plain.seek(offset)
            self.plain.write(data)

    @rule(size=PLACES)
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        current = len(self.plain.getbuffer())
        self.plain.seek(current)
        self.plain.write(bytes(max(0, size - current)))
        self.plain.truncate(size)

    @rule(offset=PLACES, length=st.integers(0, 2 * GROUP))
    def read(self, offset: int, length: int) -> None:
        expected = self.plain.getvalue()[offset : offset + length]
        assert self.file.read(offset, length) == expected
        buffer = bytearray(b"?" * length)
        assert self.file.read_into(offset, memoryview(buffer)) == len(expected)
        assert buffer == expected + b"?" * (length - len(expected))

    @rule()
    def flush(self) -> None:
        self.file.flush()
        assert self.backing.size() == host_nodes(self.file.size) * 4096
        assert parse_header(self.backing.pread(0, 4096)).major == self.version

    @rule()
    def open_again(self) -> None:
        self.file.flush()
        self.file = EncryptedContent.open(
            self.backing,
            KEY,
            "f",
            name="f",
            store=None,
            writable=True,
            version=self.version,
            waiting_limit=self.limit,
        )

    @invariant()
    def same_size(self) -> None:
        if hasattr(self, "file"):
            assert self.file.size == len(self.plain.getbuffer())

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.flush()
            again = EncryptedContent.open(
                self.backing, KEY, "f", name="f", store=None, writable=False
            )
            assert again.read(0, again.size) == self.plain.getvalue()


TestAgainstAPlainFile = AgainstAPlainFile.TestCase
TestAgainstAPlainFile.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(size=st.sampled_from(EDGES), step=st.sampled_from([1000, 4096, 131072]))
@settings(max_examples=30, deadline=None)
def test_sequential_requests_give_the_content(size: int, step: int) -> None:
    content = bytes(i * 31 % 251 for i in range(size))
    backing = MemoryBacking()
    file = EncryptedContent.create(backing, KEY, "f", name="f")
    for start in range(0, size, step):
        file.write(start, content[start : start + step])
    file.close()
    again = EncryptedContent.open(backing, KEY, "f", name="f", store=None, writable=False)
    assert b"".join(again.read(start, step) for start in range(0, size, step)) == content


def test_no_key_and_no_nonce_is_used_twice() -> None:
    """GCM with a constant IV is safe only while every key enciphers one text."""
    drawn: list[bytes] = []

    class Recorder:
        def __init__(self) -> None:
            self.calls = 0

        def keys(self, count: int) -> bytes:
            made = [(self.calls + i).to_bytes(16, "big") for i in range(count)]
            self.calls += count
            drawn.extend(made)
            return b"".join(made)

        def nonce(self) -> bytes:
            self.calls += 1
            return self.calls.to_bytes(32, "big")

    used: list[bytes] = []
    backing = MemoryBacking()
    file = EncryptedContent.create(backing, KEY, "f", name="f", keys=Recorder(), waiting_limit=5)
    nonces = set()
    for turn in range(6):
        file.write(turn * 50_000, b"x" * 60_000)
        file.flush()
        nonces.add(parse_header(backing.pread(0, 4096)).nonce)
        entries = file._nodes._tree
        for group in range(entries.count):
            page = entries.page(group)
            used += [bytes(page[i : i + 16]) for i in range(0, 4096, 32)]
    assert len(nonces) == 6
    assert len(set(drawn)) == len(drawn)
    assert set(used) - {bytes(16)} <= set(drawn)


def test_memory_is_bounded_for_a_large_file(tmp_path: Path) -> None:
    """Write, overwrite and read a file three times as large: Python never holds 64 MB."""
    path = tmp_path / "large"
    mebibytes = 200
    piece = b"0123456789abcdef" * 65536
    tracemalloc.start()
    try:
        file = EncryptedFile.create_path(path, KEY, "large")
        for number in range(mebibytes):
            file.write(number << 20, piece)
        for number in range(0, mebibytes << 20, 1 << 16):
            file.write(number + 5, b"!")
        file.close()
        file = EncryptedFile.open_path(path, KEY, "large", writable=False)
        for number in range(0, mebibytes << 20, 1 << 15):
            file.read(number, 4096)
        file.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 8_000_000 < peak < 64_000_000


def test_growing_far_is_zero_filled_and_cheap_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    file = EncryptedFile.create_path(path, KEY, "sparse")
    file.write(40 << 20, b"end")
    file.flush()
    assert file.read(0, 5000) == bytes(5000)
    assert file.read((40 << 20) - 10, 99) == bytes(10) + b"end"
    file.close()
    assert probe(path, KEY, "sparse").size == (40 << 20) + 3


def test_what_was_cut_off_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = EncryptedFile.create_path(path, KEY, "f")
    for size, cut in ((3000, 5), (9000, 8000), (9000, 3072)):
        file.truncate(0)
        file.write(0, b"s" * size)
        file.flush()
        file.truncate(cut)
        file.truncate(size)
        assert file.read(0, size) == b"s" * cut + bytes(size - cut)
    file.close()


def test_a_shrunken_file_gives_back_its_nodes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = EncryptedFile.create_path(path, KEY, "f")
    file.write(0, b"s" * 1_000_000)
    file.flush()
    file.truncate(10_000)
    file.flush()
    assert path.stat().st_size == host_nodes(10_000) * 4096
    file.close()


def test_version_1_becomes_2_with_the_first_change_unless_told_otherwise(tmp_path: Path) -> None:
    for version, after in ((2, 2), (1, 1)):
        path = tmp_path / f"f{version}"
        file = EncryptedFile.create_path(path, KEY, "f", version=1)
        file.write(0, b"old" * 5000)
        file.close()
        assert path.read_bytes()[8] == 1
        file = EncryptedFile.open_path(path, KEY, "f", writable=True, version=version)
        file.close()
        assert path.read_bytes()[8] == 1
        file = EncryptedFile.open_path(path, KEY, "f", writable=True, version=version)
        file.write(4, b"new")
        file.close()
        assert path.read_bytes()[8] == after
        file = EncryptedFile.open_path(path, KEY, "f", writable=False)
        assert file.read(0, 9) == b"oldonewld"
        file.close()


def test_rename_rewrites_the_embedded_path(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = EncryptedFile.create_path(path, KEY, "a/long/old/path")
    file.write(0, b"x" * 5000)
    file.rename("new")
    assert file.embedded_path == "new"
    file.close()
    with pytest.raises(RenamedError, match=r"expected 'a/long/old/path', found 'new'"):
        EncryptedFile.open_path(path, KEY, "a/long/old/path", writable=False)
    assert probe(path, KEY, "new").size == 5000


def test_one_writer_at_a_time_and_readers_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    first = EncryptedFile.create_path(path, KEY, "f")
    with pytest.raises(InUseError):
        EncryptedFile.open_path(path, KEY, "f", writable=True)
    EncryptedFile.open_path(path, KEY, "f", writable=False).close()
    first.close()
    EncryptedFile.open_path(path, KEY, "f", writable=True).close()


def test_a_file_that_is_unlinked_while_open_goes_on_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = EncryptedFile.create_path(path, KEY, "f")
    file.write(0, b"x" * 9000)
    file.flush()
    path.unlink()
    file.write(0, b"y" * 100_000)
    file.flush()
    other = EncryptedFile.create_path(path, KEY, "f")
    other.write(0, b"other" * 2000)
    other.flush()
    assert file.read(0, 3) == b"yyy"
    file.close()
    other.write(1, b"!")
    other.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
    assert probe(path, KEY, "f").size == 10_000


def test_the_recovery_file_goes_when_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = EncryptedFile.create_path(path, KEY, "f", mode=0o640)
    file.write(0, b"x" * 9000)
    file.flush()
    assert {entry.name for entry in tmp_path.iterdir()} == {"f", "f.gramine.recovery"}
    assert (tmp_path / "f.gramine.recovery").stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o777 == 0o640
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("path", ["", "a\0b", "p" * 772])
def test_paths_that_cannot_be_embedded_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(EmbeddedPathError):
        EncryptedFile.create_path(tmp_path / "f", KEY, path)
    assert list(tmp_path.iterdir()) == []


def test_the_longest_and_strangest_paths_can_be_embedded(tmp_path: Path) -> None:
    for name in ("p" * 771, "ä" * 385, "\udcff name", "new\nline"):
        path = tmp_path / "f"
        EncryptedFile.create_path(path, KEY, name).close()
        file = EncryptedFile.open_path(path, KEY, name, writable=False)
        assert file.embedded_path == name
        file.close()
        path.unlink()


def test_misuse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(WrapKeyError):
        EncryptedFile.create_path(path, b"short", "f")
    EncryptedFile.create_path(path, KEY, "f").close()
    file = EncryptedFile.open_path(path, KEY, "f", writable=False)
    with pytest.raises(InputError, match="reading only"):
        file.write(0, b"x")
    with pytest.raises(InputError, match="reading only"):
        file.truncate(5)
    file.close()
    file.close()
    assert file.closed
    file = EncryptedFile.open_path(path, KEY, "f", writable=True)
    with pytest.raises(InputError, match="more than a file can hold"):
        file.write(1 << 62, b"x")
    for call in (
        lambda: file.read(-1, 5),
        lambda: file.write(-1, b"x"),
        lambda: file.truncate(-1),
        lambda: file.read_into(-5, memoryview(bytearray(5))),
    ):
        with pytest.raises(InputError, match="expected 0 or more"):
            call()
    file.write(0, memoryview(bytearray(64)).cast("I"))
    assert file.size == 64
    file.close()
