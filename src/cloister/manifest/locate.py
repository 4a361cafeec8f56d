"""Where a key of a TOML text stands: line numbers for error messages.

TOML parsers of Python do not tell. This scanner does not validate: it is used on text that a parser
accepted, and only when there is an error to report.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

import tomli

KeyPath = tuple[str | int, ...]
"""Where a value stands: names of tables and keys, numbers of array items."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


class KeyLines:
    """Line numbers (from 1) of the keys and array items of ``text``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._items: dict[KeyPath, int] = {}
        self._lines: dict[KeyPath, int] = {}
        self._scan()

    def line_of(self, path: KeyPath) -> int | None:
        """Return the line of ``path``, else of the innermost table around it; None if none is."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return line
        return None

    def keys(self) -> Iterator[KeyPath]:
        """Iterate over all paths in the order of the text."""
        return iter(self._lines)

    def _scan(self) -> None:
        table: KeyPath = ()
        self._skip_blank()
        while self._at < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header("[[", "]]")
            elif self._text.startswith("[", self._at):
                table = self._header("[", "]")
            else:
                self._pair(table)
            self._skip_blank()

    def _header(self, opening: str, closing: str) -> KeyPath:
        start = self._at
        self._at += len(opening)
        path = self._resolve(self._key())
        if opening == "[[":
            path = self._next_item(path)
        self._skip_blank()
        self._at += len(closing)
        self._note(path, start)
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = (*table, *self._key())
        self._note(path, start)
        self._skip_blank()
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        first = self._text[self._at : self._at + 1]
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._take(_STRING if first in ('"', "'") else _SCALAR)

    def _array(self, path: KeyPath) -> None:
        for number in self._elements("]"):
            item = (*path, number)
            self._note(item, self._at)
            self._value(item)

    def _inline_table(self, path: KeyPath) -> None:
        for _ in self._elements("}"):
            self._pair(path)

    def _elements(self, closing: str) -> Iterator[int]:
        """Step to each element of a bracket; the caller reads it."""
        self._at += 1
        number = 0
        while True:
            self._skip_blank()
            if self._text.startswith(closing, self._at) or self._at >= len(self._text):
                self._at += 1
                return
            yield number
            number += 1
            self._skip_blank()
            if self._text.startswith(",", self._at):
                self._at += 1

    def _key(self) -> KeyPath:
        parts: list[str | int] = []
        while True:
            while self._text[self._at : self._at + 1] in (" ", "\t"):
                self._at += 1
            if self._text[self._at : self._at + 1] in ('"', "'"):
                parts.append(tomli.loads(f"key = {self._take(_STRING)}")["key"])
            else:
                parts.append(self._take(_BARE_KEY))
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                return tuple(parts)
            self._at = dot.end()

    def _resolve(self, path: KeyPath) -> KeyPath:
        """Lead a header through arrays of tables: it means the last item of each."""
        resolved: KeyPath = ()
        for number, part in enumerate(path):
            resolved = (*resolved, part)
            if number < len(path) - 1 and resolved in self._items:
                resolved = (*resolved, self._items[resolved])
        return resolved

    def _next_item(self, path: KeyPath) -> KeyPath:
        self._items[path] = self._items.get(path, -1) + 1
        return (*path, self._items[path])

    def _note(self, path: KeyPath, at: int) -> None:
        line = bisect.bisect_left(self._newlines, at) + 1
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"not TOML at character {self._at}")
        self._at = match.end()
        return match[0]

    def _skip_blank(self) -> None:
        match = _BLANK.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
