"""Expansion of trusted files and the cache of their hashes."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, ManifestError
from cloister.manifest import hashing
from cloister.manifest.cache import HashCache, Memo
from cloister.manifest.digests import Digests, digest, look, state_of
from cloister.manifest.hashing import hash_file, hash_files, stamp_of
from cloister.manifest.index import CHUNK_SIZE, UNKNOWN_SIZE, TrustedEntry
from cloister.manifest.model import TrustedFile
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import Candidate, expand

SHA = "ab" * 32


def problem(number: int, what: str, hint: str | None) -> CloisterError:
    return ManifestError(f"[{number}] {what}", hint=hint)


def expanded(base: Path, *listed: str | TrustedFile) -> dict[str, Candidate]:
    files = [TrustedFile(uri=item) if isinstance(item, str) else item for item in listed]
    return expand(files, base, FileTree(), problem)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("b", "a/x", "a/sub/y", "a.txt", "z/deep/er/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_order_of_the_list_then_of_names(base: Path) -> None:
    assert list(expanded(base, "file:b", "file:a/", "file:./a.txt", "file:a//x")) == [
        "b",
        "a/sub/y",
        "a/x",
        "a.txt",
    ]


def test_the_directory_of_the_manifest_itself(base: Path) -> None:
    assert list(expanded(base, "file:./")) == ["a/sub/y", "a/x", "a.txt", "b", "z/deep/er/f"]


def test_absolute_names_stay_absolute(base: Path) -> None:
    assert list(expanded(base, f"file:{base}/a/")) == [f"{base}/a/sub/y", f"{base}/a/x"]
    assert list(expanded(base / "a", "file:../b", "file:sub/../../a.txt")) == ["../b", "../a.txt"]


def test_links_to_files_are_files_and_links_to_directories_are_not_entered(base: Path) -> None:
    (base / "a" / "link").symlink_to(base / "b")
    (base / "a" / "away").symlink_to(base / "z")
    (base / "a" / "dangling").symlink_to("/nowhere")
    os.mkfifo(base / "a" / "pipe")
    assert list(expanded(base, "file:a/")) == ["a/link", "a/sub/y", "a/x"]


def test_a_given_hash_is_taken_as_it_is(base: Path) -> None:
    found = expanded(base, TrustedFile(uri="file:absent", sha256=SHA))
    assert digested(found).entries == {
        "absent": TrustedEntry(UNKNOWN_SIZE, bytes.fromhex(SHA), b"")
    }


def test_doubles_merge_and_the_given_hash_wins(base: Path) -> None:
    hashed = TrustedFile(uri="file:b", sha256=SHA)
    for order in ([hashed, "file:b"], ["file:./b", hashed], [hashed, hashed]):
        assert expanded(base, *order)["b"].sha256 == bytes.fromhex(SHA)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (["file:absent"], "[0] file:absent does not exist"),
        (["file:b", "file:a"], "[1] file:a is a directory"),
        (["file:b/"], "[0] file:b/: Not a directory"),
        (["file:absent/"], "[0] file:absent/: No such file or directory"),
        (
            [TrustedFile(uri="file:a/", sha256=SHA)],
            "[0] file:a/ is a directory, which has no sha256",
        ),
        (
            [TrustedFile(uri="file:b", sha256=SHA), TrustedFile(uri="file:b", sha256="cd" * 32)],
            "[1] file:b has another sha256 further up",
        ),
    ],
)
def test_what_cannot_be_trusted(base: Path, listed: list[str | TrustedFile], expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        expanded(base, *listed)
    assert caught.value.message.startswith(expected)


# --- hashing -------------------------------------------------------------------------------------


def digested(
    found: dict[str, Candidate], cache: HashCache | None = None, day: int = 0, whole: bool = True
) -> Digests:
    seen = look(found, FileTree(), problem)
    return digest(found, seen, cache or HashCache(None), problem, whole=whole, today=day)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 16 * CHUNK_SIZE, 40 * CHUNK_SIZE + 7]
)
def test_digests(tmp_path: Path, size: int) -> None:
    content = hashlib.shake_256(b"content").digest(size)
    (tmp_path / "file").write_bytes(content)
    _, entry = hash_file(str(tmp_path / "file"), whole=True)
    _, by_chunk = hash_file(str(tmp_path / "file"), whole=False)
    assert by_chunk == entry._replace(sha256=b"")
    assert entry.size == size
    assert entry.sha256 == hashlib.sha256(content).digest()
    pieces = [content[at : at + CHUNK_SIZE] for at in range(0, size, CHUNK_SIZE)]
    assert entry.chunks == b"".join(blake3(piece).digest() for piece in pieces)


def test_many_files_in_parallel_keep_their_order(tmp_path: Path) -> None:
    files = []
    for number in range(300):
        content = bytes([number % 256]) * (number * 997 + (number == 7) * (9 << 20))
        (tmp_path / f"{number}").write_bytes(content)
        files.append((str(tmp_path / f"{number}"), len(content)))
    done: list[int] = []
    results = hash_files(files, whole=True, progress=done.append)
    for (name, _), result in zip(files, results, strict=True):
        assert not isinstance(result, OSError)
        assert result[1].sha256 == hashlib.sha256(Path(name).read_bytes()).digest()
    assert sum(done) == sum(size for _, size in files)


def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    fill = hashing._fill

    def growing(descriptor: int, piece: memoryview) -> bool:
        with path.open("ab") as stream:
            stream.write(b"more")
        return fill(descriptor, piece)

    monkeypatch.setattr(hashing, "_fill", growing)
    with pytest.raises(InputError, match="changed while it was hashed"):
        hash_file(str(path), whole=True)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        hash_file(str(tmp_path / "pipe"), whole=True)


def test_what_may_not_be_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is played."""
    real = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith("/x"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    assert list(digested(expanded(base, "file:a/")).entries) == ["a/sub/y"]
    with pytest.raises(ManifestError, match=r"\[0\] .*/a/x: Permission denied"):
        digested(expanded(base, "file:a/x"))


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture
def cache_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "hashes"


@pytest.fixture
def disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same files where change times are kept; they need to be old for 50 ms only."""
    monkeypatch.setattr(hashing, "_YOUNG_NS", 50_000_000)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".tmp-") as beside:
        shutil.copytree(base, beside, dirs_exist_ok=True)
        settle(base, Path(beside))
        for directory in (base, Path(beside)):
            if hash_file(str(directory / "b"), whole=True)[0] is not None:
                yield directory
                return
        pytest.skip("neither temporary files nor this directory are on a disk that keeps ctime")


def settle(*paths: Path) -> None:
    """Give files an old mtime, and let their ctime become old enough to be trusted."""
    for path in paths:
        os.utime(path, (1, 1))
    time.sleep(0.1)


def hashed_now(base: Path, cache_file: Path, *listed: str, day: int = 0) -> int:
    return digested(expanded(base, *listed), HashCache(cache_file), day).hashed


def test_unchanged_files_are_not_hashed_again(disk: Path, cache_file: Path) -> None:
    first = digested(expanded(disk, "file:./"), HashCache(cache_file))
    second = digested(expanded(disk, "file:./"), HashCache(cache_file))
    assert (first.hashed, second.hashed) == (5, 0)
    assert first.entries == second.entries
    assert cache_file.stat().st_mode & 0o777 == 0o600


def test_digests_of_whole_files_are_made_when_they_are_needed(disk: Path, cache_file: Path) -> None:
    (disk / "b").write_bytes(bytes(CHUNK_SIZE + 1))
    settle(disk / "b")
    found = expanded(disk, "file:./")
    first = digested(found, HashCache(cache_file), whole=False)
    assert first.entries["b"].sha256 == b""
    second = digested(found, HashCache(cache_file), whole=True)
    assert second.hashed == 5
    assert second.entries["b"].sha256 == hashlib.sha256(bytes(CHUNK_SIZE + 1)).digest()
    assert digested(found, HashCache(cache_file), whole=False).entries == second.entries


def test_a_young_file_is_hashed_every_time(disk: Path, cache_file: Path) -> None:
    """It could be changed again within the same tick of the clock."""
    (disk / "b").write_text("young")
    assert [hashed_now(disk, cache_file, "file:b") for _ in range(2)] == [1, 1]


def test_every_kind_of_change_is_noticed(disk: Path, cache_file: Path) -> None:
    """Same size and same mtime as before: only ctime or the inode gives it away."""
    path = disk / "b"
    settle(path)
    assert hashed_now(disk, cache_file, "file:b") == 1
    assert hashed_now(disk, cache_file, "file:b") == 0

    path.write_text("B")
    os.utime(path, (1, 1))
    assert digested(expanded(disk, "file:b"), HashCache(cache_file)).entries["b"].sha256 == (
        hashlib.sha256(b"B").digest()
    )
    settle(path)
    hashed_now(disk, cache_file, "file:b")
    (disk / "other").write_text("C")
    os.utime(disk / "other", (1, 1))
    (disk / "other").rename(path)
    assert digested(expanded(disk, "file:b"), HashCache(cache_file)).entries["b"].sha256 == (
        hashlib.sha256(b"C").digest()
    )


def test_a_write_through_a_mapping_is_noticed(disk: Path, cache_file: Path) -> None:
    """The page is dirty before the file is hashed; without write-back ctime would not change."""
    path = disk / "b"
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapping:
        mapping[0] = ord("1")
        settle()
        assert hashed_now(disk, cache_file, "file:b") == 1
        assert hashed_now(disk, cache_file, "file:b") == 0
        mapping[0] = ord("2")
        entries = digested(expanded(disk, "file:b"), HashCache(cache_file)).entries
        assert entries["b"].sha256 == hashlib.sha256(b"2").digest()


def test_stamps_differ_in_every_part() -> None:
    plain = Path(__file__).stat()
    stamp = stamp_of(plain)
    for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
        assert stamp_of(_Changed(plain, name)) != stamp  # type: ignore[arg-type]


class _Changed:
    """A stat result with one field off by one."""

    def __init__(self, plain: os.stat_result, name: str) -> None:
        self._plain, self._name = plain, name

    def __getattr__(self, name: str) -> int:
        value: int = getattr(self._plain, name)
        return value + (name == self._name)


def test_a_cache_forgets_what_is_of_no_use(disk: Path, cache_file: Path) -> None:
    hashed_now(disk, cache_file, "file:a/", day=100)
    hashed_now(disk, cache_file, "file:b", day=159)
    assert hashed_now(disk, cache_file, "file:a/", day=159) == 0
    hashed_now(disk, cache_file, "file:a.txt", day=161)
    assert hashed_now(disk, cache_file, "file:a/", day=161) == 2
    assert hashed_now(disk, cache_file, "file:b", day=161) == 0


@given(st.data())
def test_a_damaged_cache_is_an_empty_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cache") / "hashes"
    entry = TrustedEntry(1, b"a" * 32, b"b" * 32)
    stamp = bytes(hashing.STAMP_SIZE)
    HashCache(path).store({"/a": (stamp, entry), "/b": (stamp, entry)}, [], 0)
    assert HashCache(path).get("/a", stamp) == entry
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert HashCache(path).get("/a", stamp) is None


def test_a_cache_that_others_can_write_is_not_used(disk: Path, cache_file: Path) -> None:
    hashed_now(disk, cache_file, "file:b")
    assert hashed_now(disk, cache_file, "file:b") == 0
    cache_file.chmod(0o620)
    assert hashed_now(disk, cache_file, "file:b") == 1
    memo = Memo(cache_file.parent / "indexes")
    memo.put(b"a" * 32, b"index")
    (cache_file.parent / "indexes" / (b"a" * 32).hex()).chmod(0o602)
    assert memo.get(b"a" * 32) is None


def test_without_cache_nothing_is_kept(disk: Path) -> None:
    assert [digested(expanded(disk, "file:b")).hashed for _ in range(2)] == [1, 1]


# --- whole indexes -------------------------------------------------------------------------------


def state(base: Path, *listed: str | TrustedFile) -> bytes:
    found = expanded(base, *listed)
    return state_of(found, look(found, FileTree(), problem))


def test_the_state_changes_with_every_name_stamp_and_given_hash(base: Path) -> None:
    states = [state(base, "file:./"), state(base, "file:a/"), state(base, f"file:{base}/a/")]
    (base / "a" / "new").touch()
    states.append(state(base, "file:a/"))
    os.utime(base / "a" / "x", (1, 1))
    states.append(state(base, "file:a/"))
    states += [state(base, TrustedFile(uri="file:b", sha256=sha * 32)) for sha in ("ab", "cd")]
    states.append(state(base, "file:b"))
    assert len(set(states)) == len(states)
    assert state(base, "file:b") == states[-1]


def test_only_what_is_settled_may_be_remembered(disk: Path) -> None:
    assert digested(expanded(disk, "file:./")).settled
    (disk / "b").write_text("young")
    assert not digested(expanded(disk, "file:./")).settled


def test_a_file_that_changes_after_it_was_seen_is_not_settled(disk: Path) -> None:
    found = expanded(disk, "file:b")
    seen = look(found, FileTree(), problem)
    settle(disk / "b")
    assert not digest(found, seen, HashCache(None), problem, whole=True, today=0).settled


def test_indexes_are_kept_by_state(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "indexes")
    assert memo.get(b"a" * 32) is None
    for number in range(12):
        memo.put(bytes([number]) * 32, b"index %d" % number)
        os.utime(tmp_path / "indexes" / (bytes([number]) * 32).hex(), (number, number))
    assert memo.get(b"\x0b" * 32) == b"index 11"
    assert memo.get(b"\0" * 32) is None
    assert len(list((tmp_path / "indexes").iterdir())) == 8
    file = tmp_path / "indexes" / (b"\x0b" * 32).hex()
    file.write_bytes(file.read_bytes()[:-1] + b"2")
    assert memo.get(b"\x0b" * 32) is None
    Memo(None).put(b"a" * 32, b"index")
    assert Memo(None).get(b"a" * 32) is None
