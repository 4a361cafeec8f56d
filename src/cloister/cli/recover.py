"""``cloister recover``: undo writes that a crash interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.batch import ANY, counted, jobs_option, key_option, report, work_through
from cloister.cli.progress import printable

if TYPE_CHECKING:
    from cloister.encrypted.bulk import Advance


@click.command()
@click.argument("paths", type=ANY, nargs=-1, required=True, metavar="PATH...")
@key_option
@jobs_option
def recover(paths: tuple[Path, ...], key_file: Path, jobs: int | None) -> int:
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
    for path, answer in zip(files, answers, strict=True):
        if answer is True:
            click.echo(printable(f"{path}: put back to its last complete state"))
    complete = sum(answer is False for answer in answers)
    click.echo(f"{counted(complete)} needed nothing")
    return code
