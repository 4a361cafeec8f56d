"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister import files
from cloister.errors import InputError


@pytest.fixture(params=["nameless", "named"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with nameless files and on a file system that knows none."""
    real = os.open

    def without(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **options)

    if request.param == "named":
        monkeypatch.setattr(os, "open", without)
    return str(request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", ["a", "b" * 255, "ä" * 127])
def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"first", b"second"):
        with files.atomic_output(path, mode=0o640) as stream:
            stream.write(content)
            stream.flush()
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o640
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("either_way")
def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for before in ([], [path]):
        with pytest.raises(KeyboardInterrupt), files.atomic_output(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == before
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


@pytest.mark.usefixtures("either_way")
def test_an_existing_file_is_kept_where_it_must_be(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_atomically(path, b"first", replace=False)
    with pytest.raises(InputError, match="already exists"):
        files.write_atomically(path, b"second", replace=False)
    late = tmp_path / "late"
    with (
        pytest.raises(InputError, match="already exists"),
        files.atomic_output(late, replace=False) as stream,
    ):
        stream.write(b"mine")
        late.write_bytes(b"theirs")
    assert path.read_bytes() == b"first"
    assert late.read_bytes() == b"theirs"
    assert sorted(tmp_path.iterdir()) == [path, late]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory") as caught:
        files.write_atomically(tmp_path / "none" / "a", b"x")
    assert "mkdir" in (caught.value.hint or "")


@pytest.mark.parametrize("either_way", ["nameless", "named"], indirect=True)
def test_a_killed_process_leaves_nothing_or_what_leftovers_finds(
    tmp_path: Path, either_way: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    (tmp_path / ".b.0123456789ab.tmp").write_bytes(b"another's")
    child = os.fork()
    if child == 0:
        with files.atomic_output(path) as stream:
            stream.write(b"half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old"
    assert len(files.leftovers([path])) == (either_way == "named")
    assert len(list(tmp_path.iterdir())) == 2 + (either_way == "named")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_replaced_by_one(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """As root, an output named /dev/null must not become a file."""
    path = tmp_path / "special"
    make(path)
    before = path.stat().st_mode
    with pytest.raises(InputError, match="no regular file"):
        files.write_atomically(path, b"x")
    assert path.stat().st_mode == before
