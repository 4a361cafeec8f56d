"""Gramine's log, line by line, in our words. Lines that are not in the table stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cloister.platforms.gramine.table import PAL_FAILED, TABLE, Message

_LOCATION = r"(?:\([\w.-]+:\d+:\w+\) )?"
_PREFIX = re.compile(_LOCATION + r"(?:\[[^\]]*\] )?(?:error|warning|debug|trace): (.*)", re.DOTALL)
_BARE_PREFIX = re.compile(_LOCATION + r"\[P\d+:[^\]]*\] (.*)", re.DOTALL)
_ROWS = [(re.compile(row.theirs), row) for row in TABLE]
_STARTS = (
    *(b"---", b"  - "),
    *(b"[P", b"[::", b"(", b"error: ", b"warning: ", b"debug: ", b"trace: "),
    *(
        b"Gramine ",
        b"Cannot connect to ",
        b"Please check its ",
        b"AESM service ",
        b"Secret Prov",
        b"secret_prov",
    ),
    *(b"Invalid application path ", b"The path should point ", b"found after appending "),
)
"""How a line of Gramine's may start; anything else need not be held until its end is there."""
_BANNER = re.compile(_LOCATION.encode() + rb"(?:\s*|-+|Gramine .*|  - .*)")
_SURELY = re.compile(rb"\[|" + _LOCATION.removesuffix("?").encode())
"""Lines of the list of insecure options that Gramine prints before it starts the program."""


@dataclass
class Translator:
    """Turns the standard error of a Gramine process into ours, line by line.

    Attributes:
        write: gets what is to be printed.
        failed_to_start: whether a line said so.
        has_told: whether a line was translated.
    """

    write: Callable[[bytes], None]
    failed_to_start: bool = False
    has_told: bool = False
    _program_spoke: bool = False
    _rest: bytes = b""
    _told: set[str] = field(default_factory=set)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; what is no line of Gramine's passes through unchanged."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line, b"\n")
        if self._rest and not _may_be_gramines(self._rest):
            self._program_spoke = True
            self.write(self._rest)
            self._rest = b""

    def finish(self) -> None:
        """Take the end."""
        if self._rest:
            self._line(self._rest, b"")
            self._rest = b""

    def _line(self, line: bytes, end: bytes) -> None:
        # Before the program starts, Gramine's lines begin with "error: " alone, as many do.
        gramines = _SURELY.match(line) or not self._program_spoke
        found = translate(line.decode("utf-8", "replace")) if gramines else None
        if found is None:
            self._program_spoke |= not (_may_be_gramines(line) or _BANNER.fullmatch(line))
            self.write(line + end)
            return
        text, hint, fatal, general = found
        is_known = self.failed_to_start and general
        self.failed_to_start |= fatal and not self._program_spoke
        if text is None or text in self._told or is_known:
            return
        self._told.add(text)
        self.has_told = True
        clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        told = f"cloister: {clean}\n" + (f"hint: {hint}\n" if hint else "")
        self.write(told.encode())


def _may_be_gramines(rest: bytes) -> bool:
    return any(rest.startswith(start[: len(rest)]) for start in _STARTS)


class Told(NamedTuple):
    """What a line says.

    Attributes:
        text: in our words; None drops the line.
        hint: what to do.
        fatal: whether the program did not start.
        general: whether that says no more than a fatal line before it.
    """

    text: str | None
    hint: str | None
    fatal: bool
    general: bool


def translate(line: str) -> Told | None:
    """Return what a line says; None if it is not in the table."""
    match = _PREFIX.fullmatch(line) or _BARE_PREFIX.fullmatch(line)
    text = line if match is None else match[1]
    for prefix, otherwise in PAL_FAILED:
        if text.startswith(prefix):
            rest = text.removeprefix(prefix)
            return _looked_up(rest) or _in_words(otherwise, (rest,))
    return _looked_up(text)


def _looked_up(text: str) -> Told | None:
    for pattern, row in _ROWS:
        found = pattern.fullmatch(text)
        if found is not None:
            return _in_words(row, found.groups())
    return None


def _in_words(row: Message, groups: tuple[str | Any, ...]) -> Told:
    text = None if row.ours is None else row.ours.format(*groups)
    return Told(text, row.hint, row.fatal, row.general)
