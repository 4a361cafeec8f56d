"""What the commands for encrypted files share: options, working through files, reporting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloister.cli.progress import on_terminal, progress
from cloister.errors import CloisterError
from cloister.text import printable

if TYPE_CHECKING:
    from cloister.encrypted.bulk import Advance
    from cloister.encrypted.trees import Found, Plan

Function = TypeVar("Function", bound=Callable[..., Any])

STREAM = "-"
ANY = click.Path(path_type=Path)


def not_empty(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an option's empty text: a variable of the caller's shell that was not set."""
    if value == "":
        raise click.BadParameter("expected a path, found an empty one", param=option)
    return value


def key_option(function: Function) -> Function:
    """Add ``-k/--key``: the wrap key's file."""
    return click.option(
        "-k", "--key", "key_file", required=True, type=ANY, help="File of the wrap key."
    )(function)


def jobs_option(function: Function) -> Function:
    """Add ``-j/--jobs``."""
    return click.option(
        "-j",
        "--jobs",
        type=click.IntRange(min=1),
        default=None,
        help="Processes to use (default: one for each processor).",
    )(function)


def json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print what became of each file as JSON."
    )(function)


def work_through(
    label: str,
    paths: Sequence[Path],
    operate: Callable[[int, int, Advance], object],
    *,
    jobs: int | None,
) -> list[object]:
    """Do something with each file, with a bar; return each result or error, in order.

    See :func:`cloister.encrypted.trees.run` for ``operate``.
    """
    from cloister.encrypted import trees
    from cloister.encrypted.workers import processors

    answers: list[object] = [None] * len(paths)
    total = sum(path.stat().st_size for path in paths if path.is_file())
    with progress(label, total) as advance:
        for index, answer in trees.run(paths, operate, jobs=jobs or processors(), advance=advance):
            answers[index] = answer
    return answers


def report(
    paths: Sequence[Path], answers: Sequence[object], found: Found | Plan | None = None
) -> int:
    """Name everything with which it did not work; return the exit code.

    The code is 3 if anything was refused, else 2 if any input was wrong, else 1.

    Args:
        paths: the files.
        answers: the result or the error of each.
        found: where they come from, for what was skipped or could not be looked at.
    """
    for path, reason in found.skipped if found else ():
        print(printable(f"cloister: skipped: {path}: {reason}"), file=sys.stderr)
    failed: list[tuple[Path, CloisterError | OSError]] = [*(found.failed if found else ())]
    unseen = len(failed)
    failed += [
        (path, answer)
        for path, answer in zip(paths, answers, strict=True)
        if isinstance(answer, (CloisterError, OSError))
    ]
    hints: dict[str, None] = {}
    for path, error in failed:
        print(printable(f"cloister: error: {describe(path, error)}"), file=sys.stderr)
        if isinstance(error, CloisterError) and error.hint:
            hints[error.hint] = None
    for hint in hints:
        print(printable(f"hint: {hint}"), file=sys.stderr)
    if len(failed) > 1:
        print(f"cloister: {len(failed)} of {len(paths) + unseen} files failed", file=sys.stderr)
    return max((exit_code(error) for _, error in failed), default=0)


def describe(path: Path, error: CloisterError | OSError) -> str:
    """Return one line that names the file."""
    if isinstance(error, CloisterError):
        return error.message if str(path) in error.message else f"{path}: {error.message}"
    return f"{error.filename or path}: {error.strerror or error}"


def reason(path: Path, answer: object) -> str | None:
    """Return why it did not work with a file; None if it did."""
    return describe(path, answer) if isinstance(answer, (CloisterError, OSError)) else None


def exit_code(error: CloisterError | OSError) -> int:
    """Return the exit code that an error stands for."""
    return error.exit_code if isinstance(error, CloisterError) else 1


def say(text: str) -> None:
    """Tell a person who watches what was done; scripts are not told."""
    if on_terminal():
        print(text, file=sys.stderr)


def counted(count: int, what: str = "file") -> str:
    """Return ``1 file`` or ``7 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
