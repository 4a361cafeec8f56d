"""``cloister recover``: undo writes that a crash interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.batch import (
    ANY,
    counted,
    jobs_option,
    json_option,
    key_option,
    reason,
    report,
    work_through,
)
from cloister.text import printable

if TYPE_CHECKING:
    from cloister.encrypted.bulk import Advance


@click.command()
@click.argument("paths", type=ANY, nargs=-1, required=True, metavar="PATH...")
@key_option
@json_option
@jobs_option
def recover(paths: tuple[Path, ...], key_file: Path, as_json: bool, jobs: int | None) -> int:
    """Put the encrypted files PATH and below back to their last complete state.

    A crash can leave a file marked as being written, with a recovery file beside it
    (NAME.gramine.recovery, the same as Gramine's). Cloister undoes such a write whenever it opens
    the file for writing; this command does it now, for tools that do not. Other files are left
    alone.

    \b
    Example:  cloister recover -k wrap-key encrypted
    """
    from cloister.encrypted import trees, whole
    from cloister.encrypted.keys import read_wrap_key

    key = read_wrap_key(key_file)
    found = trees.find(paths)
    files = trees.in_place(found)

    def operate(index: int, jobs: int, advance: Advance) -> bool:
        return whole.recover(files[index], key)

    answers = work_through("Recovering", files, operate, jobs=jobs)
    code = report(files, answers, found)
    if as_json:
        results = [
            {"path": str(path), "recovered": answer is True, "error": reason(path, answer)}
            for path, answer in zip(files, answers, strict=True)
        ]
        click.echo(json.dumps(results, indent=2))
        return code
    for path, answer in zip(files, answers, strict=True):
        if answer is True:
            click.echo(printable(f"{path}: put back to its last complete state"))
    complete = sum(answer is False for answer in answers)
    click.echo(f"{counted(complete)} needed nothing")
    return code
