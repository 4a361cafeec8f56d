"""Files that the host replaces or takes away while a program has them open, as ``mv`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from applications import KEY, PYTHON, App
from cloister.encrypted import decrypt, encrypt
from evaluating import PROGRAM, repeated, start

WRAP_KEY = bytes.fromhex(KEY)
Seal = Callable[[bytes], bytes]


class Place:
    """A mounted directory or file, allowed or encrypted, and a program that is there."""

    def __init__(
        self, app: App, kind: str, processes: contextlib.ExitStack, mounted: str = ""
    ) -> None:
        self._encrypted = kind == "encrypted"
        self.file = app.directory / "place" / "file"
        self.file.parent.mkdir()
        kind = "encrypted" if self._encrypted else "chroot"
        app.mount(f"/place{mounted}", f"file:place{mounted}", kind)
        app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
        self.put(b"old")
        app.direct([PYTHON, "-c", PROGRAM.format("/place")], input="")
        self.program = start(app, processes)
        assert self.program("files.setdefault('old', open('file', 'r+b')).read()") == "b'old'"

    def put(self, content: bytes) -> None:
        """Put a file in place of the one that is there."""
        new = self.file.parent.parent / "new"
        new.write_bytes(encrypt(content, WRAP_KEY, "place/file") if self._encrypted else content)
        new.rename(self.file)

    def content(self) -> bytes:
        """Return what the host's file of that name holds."""
        stored = self.file.read_bytes()
        return decrypt(stored, WRAP_KEY, "place/file") if self._encrypted else stored


@pytest.fixture(params=["allowed", "encrypted"])
def place(app: App, request: pytest.FixtureRequest) -> Iterator[Place]:
    with contextlib.ExitStack() as processes:
        yield Place(app, request.param, processes)


def test_a_file_put_in_place_of_an_open_one(place: Place) -> None:
    """Who has the old one keeps it; who opens the name gets the new one."""
    program = place.program
    place.put(b"new content")
    assert program("files.setdefault('new', open('file', 'r+b')).read()") == "b'new content'"
    assert program("os.fstat(files['new'].fileno()).st_size") == "11"
    assert program("os.stat('file').st_size") == "11"
    assert program("files['old'].seek(0), files['old'].read()") == "(0, b'old')"
    assert program("os.fstat(files['old'].fileno()).st_size") == "3"
    assert program("files['old'].write(b', more'), files['old'].close()") == "(6, None)"
    assert program("files['new'].write(b', more'), files['new'].close()") == "(6, None)"
    repeated(program, "os.stat('file').st_size", "17")
    assert place.content() == b"new content, more"


@pytest.mark.parametrize("kind", ["allowed", "encrypted"])
def test_a_mounted_file_is_replaced(app: App, kind: str) -> None:
    with contextlib.ExitStack() as processes:
        place = Place(app, kind, processes, "/file")
        program = place.program
        for content in (b"new content", b"newer content"):
            place.put(content)
            assert program("files.setdefault('new', open('file', 'r+b')).read()") == repr(content)
            assert program("files['new'].write(b'.'), files.pop('new').close()") == "(1, None)"
            assert place.content() == content + b"."
            assert program("open('file', 'rb').read()") == repr(content + b".")
        assert program("files['old'].seek(0), files['old'].read()") == "(0, b'old')"
        assert program("files['old'].close()") == "None"
        assert program("open('file', 'rb').read()") == "b'newer content.'"


def test_a_file_that_appears_elsewhere_is_seen_by_its_name_too(place: Place) -> None:
    place.put(b"new content")
    repeated(place.program, "os.stat('file').st_size", "11")


@pytest.mark.parametrize("way", ["remove", "move"])
def test_a_name_of_an_open_file_that_was_taken_away_is_made_again(place: Place, way: str) -> None:
    """As a program's log that the host rotates."""
    program = place.program
    if way == "remove":
        place.file.unlink()
    else:
        place.file.rename(place.file.with_name("file.1"))
    assert program("open('file', 'rb')") == "FileNotFoundError"
    assert program("files.setdefault('new', open('file', 'ab', 0)).write(b'anew')") == "4"
    assert program("files['old'].seek(0), files['old'].read()") == "(0, b'old')"
    assert program("files['new'].close(), files['old'].close()") == "(None, None)"
    repeated(program, "os.stat('file').st_size", "4")
    assert place.content() == b"anew"


def test_a_name_that_was_just_taken_away_is_made_again(place: Place) -> None:
    program = place.program
    assert program("files['old'].close()") == "None"
    assert program("os.stat('file').st_size") == "3"
    place.file.unlink()
    assert program("open('file', 'ab', 0).write(b'anew')") == "4"
    assert place.content() == b"anew"


def test_a_file_that_is_truncated_by_name_is_the_one_in_place(place: Place) -> None:
    place.put(b"new content")
    assert place.program("os.truncate('file', 3) or os.stat('file').st_size") == "3"
    assert place.program("files['old'].seek(0), files['old'].read()") == "(0, b'old')"
    assert place.content() == b"new"


def test_what_is_done_to_a_descriptor_is_done_to_the_file_that_was_opened(place: Place) -> None:
    program = place.program
    place.put(b"new content")
    assert program("os.ftruncate(files['old'].fileno(), 1)") == "None"
    assert program("os.fstat(files['old'].fileno()).st_size") == "1"
    assert program("os.fchmod(files['old'].fileno(), 0o600)") == "None"
    assert program("files['old'].close()") == "None"
    assert place.content() == b"new content"


def test_a_file_put_in_place_of_an_open_one_is_renamed(place: Place) -> None:
    program = place.program
    place.put(b"new content")
    assert program("os.rename('file', 'other') or open('other', 'rb').read()") == "b'new content'"
    assert program("files['old'].seek(0), files['old'].read()") == "(0, b'old')"
    assert program("os.listdir()") == "['other']"
