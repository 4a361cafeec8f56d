"""The record of a run as one HTML page that needs nothing else: no scripts, no images, no network.

Everything in a record is hostile: file names are chosen by programs and hosts. Jinja escapes all of
it, and the page's Content-Security-Policy permits its own style sheet, by hash, and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import jinja2
from markupsafe import Markup

from cloister.report.record import Decision, Files, Kind, RunRecord, of_this_run, seconds_between

MOST_ROWS = 1000
"""Rows of a table; a person reads no more, and the record has them all."""
_SIGNALLED = 128

_KINDS = {
    Kind.TRUSTED: (
        "Trusted files",
        "Read only. Every byte was checked against what was signed before the program saw it.",
    ),
    Kind.ENCRYPTED: (
        "Encrypted files",
        "The machine holds ciphertext only; sizes are those of the content.",
    ),
    Kind.ALLOWED: (
        "Allowed files",
        "The signed manifest leaves them open: the machine could read and change them.",
    ),
    Kind.UNCHECKED: (
        "Unchecked files",
        "Nothing protects them: the machine could read and change them.",
    ),
    Kind.MACHINE: (
        "Information about the machine",
        "Read only and unchecked: the machine's kernel makes it.",
    ),
}


@dataclass(frozen=True)
class _Row:
    """The files of one kind, added up."""

    title: str
    protection: str
    files: Files

    @property
    def count(self) -> str:
        more = f" and {self.files.unlisted:,} more openings" if self.files.unlisted else ""
        return f"{len(self.files.listed):,}{more}"

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.listed)

    @property
    def read(self) -> int:
        return sum(file.read for file in self.files.listed)

    @property
    def written(self) -> int:
        return sum(file.written for file in self.files.listed)


@dataclass(frozen=True)
class _Step:
    """A part of the run's time.

    Attributes:
        start, share: of the whole time, in percent.
    """

    name: str
    number: int
    began: datetime
    seconds: float
    start: float
    share: float


@dataclass(frozen=True)
class _Owner:
    """What a key server's log says of this run.

    Attributes:
        decisions: about this enclave, while it ran.
        others: how many records are about something else.
        released: how many of the decisions released a secret.
    """

    decisions: list[Decision]
    others: int
    released: int


def render(record: RunRecord, decisions: Sequence[Decision] | None = None) -> str:
    """Return the page.

    Args:
        record: the run.
        decisions: the key server's audit log; None if nobody gave it.
    """
    files = importlib.resources.files("cloister.report")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": shown_size, "when": _when, "seconds": shown_seconds}
    template = environment.from_string(files.joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        run=record,
        style=Markup(style),  # noqa: S704  (a file of ours; the hash beside it permits nothing else)
        style_hash=digest,
        most=MOST_ROWS,
        result=_result(record),
        rows=[_Row(*_KINDS[files.kind], files) for files in record.files],
        steps=_steps(record),
        total=seconds_between(record.times.begun, record.times.ended),
        owner=None if decisions is None else _owner(record, list(decisions)),
        denials=sum(denial.count for denial in record.denials) + record.denials_unlisted,
    )


def _result(record: RunRecord) -> tuple[str, str]:
    """Return a class of the style sheet and a sentence."""
    if record.exit_code is None:
        return "bad", "The program did not run to its end."
    if record.exit_code == 0:
        return "good", "The program ended successfully (exit code 0)."
    sentence = f"The program ended with exit code {record.exit_code}"
    number = record.exit_code - _SIGNALLED
    if number in {each.value for each in signal.Signals}:
        sentence += f", which stands for the signal {signal.Signals(number).name}"
    return "bad", f"{sentence}."


def _steps(record: RunRecord) -> list[_Step]:
    times = record.times
    marks = [
        ("Preparing and starting the enclave", times.begun),
        ("Proving it and getting keys", times.enclave),
        ("The program", times.program),
        ("Ending", times.program_ended),
    ]
    if times.enclave is None and record.enclave is None:
        marks[0] = ("Preparing", times.begun)
    reached = [(number, name, mark) for number, (name, mark) in enumerate(marks) if mark]
    ends = [mark for _, _, mark in reached[1:]] + [times.ended]
    whole = max((times.ended - times.begun).total_seconds(), 1e-6)
    return [
        _Step(
            name=name,
            number=number,
            began=began,
            seconds=(end - began).total_seconds(),
            start=100 * (began - times.begun).total_seconds() / whole,
            share=100 * (end - began).total_seconds() / whole,
        )
        for (number, name, began), end in zip(reached, ends, strict=True)
    ]


def _owner(record: RunRecord, decisions: list[Decision]) -> _Owner:
    found = of_this_run(record, decisions)
    released = sum(1 for decision in found if decision.outcome == "released")
    return _Owner(found, len(decisions) - len(found), released)


def shown_size(count: int) -> str:
    """Return bytes as people read them, in powers of 1024."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count:,} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def shown_seconds(seconds: float) -> str:
    """Return a length of time as people read it."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _when(time: datetime) -> Markup:
    """Return a point of time for people and programs."""
    utc = time.astimezone(timezone.utc)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    )
