"""``cloister rekey``: encrypted files under a new key."""

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

if TYPE_CHECKING:
    from cloister.encrypted.bulk import Advance


@click.command()
@click.argument("paths", type=ANY, nargs=-1, required=True, metavar="PATH...")
@key_option
@click.option("--new-key", "new_file", required=True, type=ANY, help="File of the new wrap key.")
@json_option
@jobs_option
def rekey(
    paths: tuple[Path, ...], key_file: Path, new_file: Path, as_json: bool, jobs: int | None
) -> int:
    """Encrypt the encrypted files PATH and below again, under another key.

    Each file is replaced in one step, when its new form is complete and on the disk. After an
    interruption run the command again: files that have the new key already are left alone. Keep
    both keys until it has ended well.

    \b
    Example:  cloister key new wrap-key.2
              cloister rekey -k wrap-key --new-key wrap-key.2 encrypted
    """
    from cloister.encrypted import trees, whole
    from cloister.encrypted.keys import read_wrap_key
    from cloister.errors import InputError

    old, new = read_wrap_key(key_file), read_wrap_key(new_file)
    if old == new:
        raise InputError(f"{new_file}: holds the same key as {key_file}")
    found = trees.find(paths)
    files = trees.in_place(found)

    def operate(index: int, jobs: int, advance: Advance) -> bool:
        return whole.rekey(files[index], old, new, jobs=jobs, advance=advance)

    if trees.share_content(files):
        jobs = 1  # two processes with one file would keep each other out
    whole.remove_leftovers(files)
    answers = work_through("Rekeying", files, operate, jobs=jobs)
    code = report(files, answers, found)
    if as_json:
        results = [
            {"path": str(path), "changed": answer is True, "error": reason(path, answer)}
            for path, answer in zip(files, answers, strict=True)
        ]
        click.echo(json.dumps(results, indent=2))
        return code
    done = sum(answer is True for answer in answers)
    before = sum(answer is False for answer in answers)
    had = f"; {counted(before)} had the new key already" if before else ""
    click.echo(f"{counted(done)} under the new key{had}")
    return code
