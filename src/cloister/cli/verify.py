"""``cloister verify``: whether every byte of encrypted files is what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.batch import (
    ANY,
    counted,
    jobs_option,
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
@click.option("--any-path", is_flag=True, help="Accept files that were bound to another name.")
@click.option("--json", "as_json", is_flag=True, help="Print every file and its verdict as JSON.")
@jobs_option
def verify(
    paths: tuple[Path, ...], key_file: Path, any_path: bool, as_json: bool, jobs: int | None
) -> int:
    """Authenticate every byte of the encrypted files PATH and below.

    Lists all that is bad, with the reason and the region: wrong key, changed, truncated, bound to
    another path, of an unknown version, or not an encrypted file at all. Exits with 3 if anything
    is bad. Nothing is decrypted to any disk.

    \b
    Example:  cloister verify -k wrap-key encrypted
    """
    from cloister.encrypted import trees, whole
    from cloister.encrypted.keys import read_wrap_key
    from cloister.errors import InputError

    key = read_wrap_key(key_file)
    found = trees.find(paths)

    def operate(index: int, jobs: int, advance: Advance) -> None:
        path, relative = found.files[index]
        expected = whole.Expected.of(relative, None, any_path=any_path)
        whole.verify(path, key, expected, jobs=jobs, advance=advance)

    files = [path for path, _ in found.files]
    if not (files or found.failed or found.skipped):
        raise InputError(
            f"{', '.join(map(str, paths))}: holds no file, so that nothing can be verified",
            hint="name the directory that has the encrypted files",
        )
    answers = work_through("Verifying", files, operate, jobs=jobs)
    if as_json:
        verdicts = [
            {
                "path": str(path),
                "good": answer is None,
                "reason": reason(path, answer),
            }
            for path, answer in zip(files, answers, strict=True)
        ]
        click.echo(json.dumps(verdicts, indent=2))
    bad = report(files, answers, found) != 0
    if not bad and not as_json:
        click.echo(f"{counted(len(files))} good")
    return 3 if bad else 0
