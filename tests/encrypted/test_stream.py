"""Python file objects on encrypted files: what other libraries do with files works on them."""

from __future__ import annotations

import csv
import io
import os
import pickle
import random
import shutil
import sqlite3
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import PIL.Image
import pytest

import cloister.encrypted
from cloister.encrypted.stream import EncryptedStream
from cloister.errors import NotEncryptedError, RenamedError, WrapKeyError, WrongKeyError

KEY = bytes(range(16))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_written_bytes_are_read_again_and_are_not_on_the_disk(path: Path) -> None:
    with cloister.encrypted.open(path, KEY, "wb", embedded_path="a/b") as file:
        assert file.write(b"marker " * 3000) == 21_000
    assert b"marker" not in path.read_bytes()
    with cloister.encrypted.open(path, KEY, embedded_path="a/b") as file:
        assert file.read() == b"marker " * 3000
        assert file.embedded_path == "a/b"
        assert file.name == str(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_new_file_is_bound_to_the_path_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    with cloister.encrypted.open("./sub/../sub//x", KEY, "x") as file:
        assert file.embedded_path == "sub/x"


def test_the_key_may_be_a_file(tmp_path: Path, path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY.hex() + "\n")
    with cloister.encrypted.open(path, key_file, "w") as file:
        file.write(b"x")
    assert cloister.encrypted.decrypt(path.read_bytes(), str(key_file)) == b"x"
    with pytest.raises(WrapKeyError):
        cloister.encrypted.open(path, tmp_path / "none")


def apply(files: list[io.RawIOBase | io.BufferedRandom], dice: random.Random) -> None:
    """Do one random thing to all files; all must answer alike."""
    kind = dice.randrange(7)
    place, length = dice.randrange(30_000), dice.randrange(12_000)
    data = dice.randbytes(length)
    whence = dice.choice([os.SEEK_SET, os.SEEK_END])
    for file in files:
        if kind == 0:
            file.seek(place)
            file.write(data)
        elif kind == 1:
            file.seek(-min(place, file.seek(0, os.SEEK_END)) if whence else place, whence)
        elif kind == 2:
            file.truncate(place)
        elif kind == 3:
            file.flush()
    if kind > 3:
        calls: dict[int, Callable[[Any], object]] = {
            4: lambda file: file.read(length),
            5: lambda file: file.readline(),
            6: lambda file: (file.tell(), file.read()),
        }
        first, *rest = [calls[kind](file) for file in files]
        assert all(answer == first for answer in rest)


def test_it_behaves_like_a_plain_file(tmp_path: Path, path: Path) -> None:
    plain = (tmp_path / "plain").open("w+b", buffering=0)
    raw = cloister.encrypted.open(path, KEY, "w+b")
    buffered = io.BufferedRandom(cloister.encrypted.open(tmp_path / "buffered", KEY, "w+"))
    dice = random.Random(8)
    for _ in range(400):
        apply([plain, raw, buffered], dice)
    for file in (plain, raw, buffered):
        file.close()
    content = (tmp_path / "plain").read_bytes()
    assert cloister.encrypted.open(path, KEY).read() == content
    assert cloister.encrypted.open(tmp_path / "buffered", KEY).read() == content


@pytest.mark.parametrize("mode", ["r", "r+", "w", "w+", "x", "x+", "a", "a+", "rb", "r+b", "ab+"])
@pytest.mark.parametrize("exists", [False, True])
def test_modes_mean_what_they_mean_for_plain_files(tmp_path: Path, mode: str, exists: bool) -> None:
    """Compare with the built-in open, byte for byte and error for error."""
    plain, path = tmp_path / "plain", tmp_path / "encrypted"
    if exists:
        plain.write_bytes(b"0123456789")
        path.write_bytes(cloister.encrypted.encrypt(b"0123456789", KEY, "p"))
    binary = mode if "b" in mode else f"{mode}b"
    outcomes: list[list[object]] = []
    for opener in (
        lambda: plain.open(binary, buffering=0),
        lambda: cloister.encrypted.open(path, KEY, mode),
    ):
        outcome: list[object] = []
        try:
            file = opener()
        except OSError as error:
            outcomes.append([type(error)])
            continue
        with file:
            outcome += [file.readable(), file.writable(), file.seekable(), file.tell()]
            for attempt in (
                lambda: file.write(b"ab"),  # noqa: B023
                lambda: file.seek(1),  # noqa: B023
                lambda: file.read(4),  # noqa: B023
                lambda: file.write(b"cd"),  # noqa: B023
                lambda: file.truncate(8),  # noqa: B023
            ):
                try:
                    outcome.append(attempt())
                except OSError as error:
                    outcome.append(type(error))
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    if plain.exists():
        assert cloister.encrypted.decrypt(path.read_bytes(), KEY) == plain.read_bytes()


def test_wrong_use_is_answered_like_a_plain_file(path: Path) -> None:
    with pytest.raises(ValueError, match="mode"):
        cloister.encrypted.open(path, KEY, "rw")
    with pytest.raises(FileNotFoundError):
        cloister.encrypted.open(path, KEY)
    file = cloister.encrypted.open(path, KEY, "x")
    with pytest.raises(FileExistsError):
        cloister.encrypted.open(path, KEY, "x")
    with pytest.raises(OSError, match="Invalid argument"):
        file.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        file.seek(0, 9)
    with pytest.raises(OSError, match="Invalid argument"):
        file.truncate(-1)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(ValueError, match="closed"):
        file.tell()


@pytest.mark.parametrize("version", [0, 3, -1])
def test_an_unknown_version_is_refused_before_anything_is_made(path: Path, version: int) -> None:
    with pytest.raises(ValueError, match="version is"):
        cloister.encrypted.open(path, KEY, "w", version=version)
    assert not path.exists()
    with pytest.raises(ValueError, match="version is"):
        cloister.encrypted.encrypt(b"x", KEY, "/x", version=version)


def test_a_file_of_another_key_or_a_plain_one_is_never_overwritten(path: Path) -> None:
    path.write_bytes(b"plain")
    with pytest.raises(NotEncryptedError):
        cloister.encrypted.open(path, KEY, "w")
    assert path.read_bytes() == b"plain"
    foreign = cloister.encrypted.encrypt(b"x", bytes(16), "p")
    path.write_bytes(foreign)
    with pytest.raises(WrongKeyError):
        cloister.encrypted.open(path, KEY, "w")
    with pytest.raises(RenamedError):
        cloister.encrypted.open(path, bytes(16), "r+", embedded_path="q")
    assert path.read_bytes() == foreign


def test_bytes_in_memory(path: Path) -> None:
    for size in (0, 3072, 100_000):
        for version in (1, 2):
            data = os.urandom(size)
            file = cloister.encrypted.encrypt(data, KEY, "p", version=version)
            assert cloister.encrypted.decrypt(file, KEY, "p") == data
            assert cloister.encrypted.decrypt(memoryview(file), KEY) == data
            with pytest.raises(RenamedError):
                cloister.encrypted.decrypt(file, KEY, "q")


def test_text_and_lines(path: Path) -> None:
    lines = [f"line {number} ä\n" for number in range(5000)]
    with io.TextIOWrapper(
        io.BufferedWriter(cloister.encrypted.open(path, KEY, "w")), encoding="utf-8"
    ) as text:
        text.writelines(lines)
    with cloister.encrypted.open(path, KEY) as file:
        assert [line.decode() for line in file] == lines
    with io.TextIOWrapper(
        io.BufferedReader(cloister.encrypted.open(path, KEY)), encoding="utf-8"
    ) as reader:
        assert reader.readlines() == lines


def test_torch_saves_and_loads(path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"a": torch.arange(100_000), "b": torch.ones(3, 3)}
    with cloister.encrypted.open(path, KEY, "w+") as file:
        torch.save(weights, file)
    with cloister.encrypted.open(path, KEY) as file:
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["a"], weights["a"])
    assert torch.equal(loaded["b"], weights["b"])


def test_pillow_opens_and_saves_pictures(path: Path) -> None:
    picture = PIL.Image.effect_noise((300, 200), 50)
    with cloister.encrypted.open(path, KEY, "w+") as file:
        picture.save(cast("IO[bytes]", file), "PNG")
    with (
        cloister.encrypted.open(path, KEY) as file,
        PIL.Image.open(cast("IO[bytes]", file)) as again,
    ):
        assert again.format == "PNG"
        assert again.tobytes() == picture.tobytes()


def test_zip_archives(path: Path) -> None:
    with (
        cloister.encrypted.open(path, KEY, "w+") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("a.txt", "x" * 100_000)
    with (
        cloister.encrypted.open(path, KEY, "r+") as file,
        zipfile.ZipFile(file, "a") as archive,
    ):
        archive.writestr("b.txt", "more")
    with (
        cloister.encrypted.open(path, KEY) as file,
        zipfile.ZipFile(file) as archive,
    ):
        assert archive.testzip() is None
        assert archive.read("a.txt") == b"x" * 100_000
        assert archive.read("b.txt") == b"more"


def test_sqlite_backups(tmp_path: Path, path: Path) -> None:
    source = sqlite3.connect(":memory:")
    source.execute("create table t (n integer)")
    source.executemany("insert into t values (?)", [(n,) for n in range(10_000)])
    source.commit()
    with sqlite3.connect(tmp_path / "backup.db") as backup:
        source.backup(backup)
    with cloister.encrypted.open(path, KEY, "w") as file, (tmp_path / "backup.db").open("rb") as db:
        shutil.copyfileobj(db, file)
    with cloister.encrypted.open(path, KEY) as file:
        if sys.version_info >= (3, 11):
            restored = sqlite3.connect(":memory:")
            restored.deserialize(file.read())
        else:
            (tmp_path / "restored.db").write_bytes(file.read())
            restored = sqlite3.connect(tmp_path / "restored.db")
    assert restored.execute("select count(*), sum(n) from t").fetchone() == (10_000, 49_995_000)


def test_numpy_arrays(path: Path) -> None:
    array = np.arange(100_000, dtype="f4").reshape(100, 1000)
    with cloister.encrypted.open(path, KEY, "w") as file:
        np.save(file, array)
    with cloister.encrypted.open(path, KEY) as file:
        assert (np.load(file) == array).all()
    with cloister.encrypted.open(path, KEY, "w+") as file:
        np.savez_compressed(file, first=array, second=array * 2)
        file.seek(0)
        assert (np.load(file)["second"] == array * 2).all()


def test_arrays_of_any_shape_are_buffers(path: Path) -> None:
    """Empty ones too, as for plain files."""
    empty: Any = np.empty((0, 3))
    square: Any = np.arange(12, dtype="i4").reshape(3, 4)
    for file in (
        cloister.encrypted.open(path, KEY, "w+"),
        path.with_name("plain").open("w+b", buffering=0),
    ):
        assert file.write(empty) == 0
        assert file.readinto(empty) == 0
        assert file.write(square) == square.nbytes
        file.seek(0)
        back: Any = np.zeros((3, 4), dtype="i4")
        assert file.readinto(back) == square.nbytes
        assert (back == square).all()
        file.close()


def test_what_needs_a_plaintext_file_is_refused(path: Path) -> None:
    with cloister.encrypted.open(path, KEY, "w+") as file:
        np.save(file, np.arange(10))
        file.seek(0)
        with pytest.raises(TypeError):
            np.load(file, mmap_mode="r")
        with pytest.raises(io.UnsupportedOperation, match="fileno"):
            np.memmap(cast(IO[bytes], file))
        with pytest.raises(io.UnsupportedOperation, match="fileno"):
            np.arange(10).tofile(cast(IO[bytes], file))


def test_pickles_go_through_it_and_it_goes_into_none(path: Path) -> None:
    things = {"array": np.arange(5), "text": "x" * 100_000}
    with cloister.encrypted.open(path, KEY, "w") as file:
        pickle.dump(things, file, protocol=5)
        for holder in (file, file._content):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(holder)  # it would hold the key
    with io.BufferedReader(cloister.encrypted.open(path, KEY)) as buffered:
        assert pickle.load(buffered)["text"] == things["text"]


def test_tables_and_tar_archives(path: Path) -> None:
    rows = [["name", "score"], ["cät", "0.5"]]
    with io.TextIOWrapper(
        cast(IO[bytes], cloister.encrypted.open(path, KEY, "w")), "utf-8"
    ) as text:
        csv.writer(text).writerows(rows)
    with io.TextIOWrapper(cast(IO[bytes], cloister.encrypted.open(path, KEY)), "utf-8") as text:
        assert list(csv.reader(text)) == rows
    with (
        cloister.encrypted.open(path, KEY, "w+") as file,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        archive.addfile(tarfile.TarInfo("member"))
    with cloister.encrypted.open(path, KEY) as file, tarfile.open(fileobj=file) as archive:
        assert archive.getnames() == ["member"]


def test_handles_share_one_state(path: Path) -> None:
    from cloister.encrypted.file import EncryptedFile

    file = EncryptedFile.create_path(path, KEY, "p")
    writer, reader = (EncryptedStream(file, mode, owner=False) for mode in ("r+", "r"))
    appender = EncryptedStream(file, "a", owner=False)
    writer.write(b"0" * 5000)
    assert reader.read(2) == b"00"
    appender.write(b"end")
    writer.seek(0)
    writer.write(b"1")
    assert reader.seek(-4, os.SEEK_END) == 4999
    assert reader.read() == b"0end"
    writer.truncate(4)
    assert reader.read() == b""
    assert reader.seek(0) == 0
    assert reader.read() == b"1000"
    writer.close()
    assert not file.closed
    file.close()


def test_public_names_exist_and_others_do_not() -> None:
    for name in cloister.encrypted.__all__:
        assert callable(getattr(cloister.encrypted, name))
    with pytest.raises(AttributeError):
        cloister.encrypted.nonsense  # noqa: B018
