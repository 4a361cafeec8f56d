"""Rendering a template file, here or ahead in a process beside this one.

A build where nothing changed spends half of its time looking at the files of a Python environment,
which the template asks for, and half of it importing what parses and signs the result.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import signal
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import InputError
from cloister.manifest.tree import FileTree

if TYPE_CHECKING:
    from cloister.manifest.template import Template

_SIZE = struct.Struct("<Q")


class Rendering:
    """A template file, and what it renders to; rendered when that is first asked for.

    Args:
        path: the template.
        definitions: names that it may use.

    Attributes:
        tree: listings of the directories that the template asked for.
    """

    def __init__(self, path: Path, definitions: Mapping[str, str | bool]) -> None:
        self.path = path
        self.tree = FileTree()
        self._definitions = definitions
        self._ahead: int | None = None

    @functools.cached_property
    def text(self) -> str:
        """The rendered text.

        Raises:
            InputError: the file does not exist, or is not text.
            ManifestError: a mistake in the template.
        """
        if self._ahead is not None:
            with open(self._ahead, "rb", closefd=False) as pipe:
                size, answer = pipe.read(_SIZE.size), pipe.read()
            if size == _SIZE.pack(len(answer)):
                text, tree = marshal.loads(answer)  # noqa: S302  (our own child wrote it)
                self.tree.restore(tree)
                return str(text)
            # Whatever was wrong there is wrong here too, and is said here.
        return self._template.render()

    def line_of(self, line: int) -> int | None:
        """Return the line of the template that made ``line`` of the text (both from 1)."""
        return self._template.line_of(line)

    @functools.cached_property
    def _template(self) -> Template:
        from cloister.manifest.template import Template

        text = _read(self.path)
        return Template(text, self._definitions, source=str(self.path), tree=self.tree)

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """Render in a process beside this one until the context ends."""
        if not hasattr(os, "fork") or threading.active_count() > 1:
            yield  # not possible, or not safe
            return
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._answer(writing)
        os.close(writing)
        self._ahead = reading
        try:
            yield
        finally:
            self._ahead = None
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _answer(self, pipe: int) -> None:
        """Render and write the result to ``pipe``; end the process, silently in any case."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            answer = marshal.dumps((self.text, self.tree.dump()))
            with open(pipe, "wb") as stream:
                stream.write(_SIZE.pack(len(answer)) + answer)
        finally:
            os._exit(0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
