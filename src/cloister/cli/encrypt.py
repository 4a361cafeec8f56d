"""``cloister encrypt``: files that only the holder of the wrap key can read or change."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.batch import (
    ANY,
    STREAM,
    counted,
    jobs_option,
    json_option,
    key_option,
    not_empty,
    reason,
    report,
    say,
    work_through,
)
from cloister.cli.progress import progress
from cloister.cli.streams import data_input, data_output
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.encrypted.bulk import Advance

VERSIONS = {"gramine": 2, "graphene": 1}


@click.command()
@click.argument("sources", type=ANY, nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", type=click.Path())
@key_option
@click.option(
    "--as",
    "embedded",
    callback=not_empty,
    metavar="PATH",
    help="Path that the file is bound to, or the directory for several files "
    "(default: TARGET as you type it).",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(VERSIONS)),
    default="gramine",
    show_default=True,
    help="Version 2 of the format, or version 1 for Graphene.",
)
@json_option
@jobs_option
def encrypt(
    sources: tuple[Path, ...],
    target: str,
    key_file: Path,
    embedded: str | None,
    format_name: str,
    as_json: bool,
    jobs: int | None,
) -> int:
    """Encrypt SOURCE to TARGET.

    A file becomes the file TARGET; the files of a directory keep their places in the directory
    TARGET; several sources are put into the directory TARGET under their names. `-` is standard
    input or output.

    Each file is bound to its path as the enclave will name it: a file written to encrypted/a.txt
    opens in an enclave whose manifest mounts file:encrypted, and under no other name.

    \b
    Example:  cloister encrypt -k wrap-key plaintext encrypted
              cloister encrypt -k wrap-key photo.jpg encrypted/input.jpg
              tar c model | cloister encrypt -k wrap-key --as data/model.tar - model.tar
    """
    from cloister.encrypted.keys import read_wrap_key

    key = read_wrap_key(key_file)
    version = VERSIONS[format_name]
    if STREAM in (target, *map(str, sources)):
        if as_json:
            raise InputError("--json is for files: it would mix with what goes to a stream")
        return _streams(sources, target, key, embedded, version, jobs)
    return _files(sources, target, key, embedded, version, jobs, as_json)


def _files(
    sources: tuple[Path, ...],
    target: str,
    key: bytes,
    embedded: str | None,
    version: int,
    jobs: int | None,
    as_json: bool,
) -> int:
    from cloister.encrypted import trees, whole
    from cloister.encrypted.paths import normalise

    plan = trees.pair(sources, Path(target), directory=target.endswith("/"))
    several = len(sources) > 1 or sources[0].is_dir()

    def path_of(each: trees.Pair) -> str:
        if embedded is None:
            return normalise(os.fspath(each.target))
        below = os.path.relpath(each.target, target) if several else ""
        return normalise(f"{embedded}/{below}")

    def operate(index: int, jobs: int, advance: Advance) -> None:
        each = plan.pairs[index]
        whole.encrypt(
            each.source,
            each.target,
            key,
            path_of(each),
            version=version,
            jobs=jobs,
            advance=advance,
        )

    trees.make_directories(plan)
    paths = [each.source for each in plan.pairs]
    answers = work_through("Encrypting", paths, operate, jobs=jobs)
    if as_json:
        results = [
            {
                "source": str(each.source),
                "target": str(each.target),
                "path": path_of(each),
                "error": reason(each.source, answer),
            }
            for each, answer in zip(plan.pairs, answers, strict=True)
        ]
        click.echo(json.dumps(results, indent=2))
    code = report(paths, answers, plan)
    if code == 0:
        say(f"{counted(len(plan.pairs))} encrypted to {target}")
    return code


def _streams(
    sources: tuple[Path, ...],
    target: str,
    key: bytes,
    embedded: str | None,
    version: int,
    jobs: int | None,
) -> int:
    from cloister.encrypted import whole
    from cloister.encrypted.paths import normalise
    from cloister.encrypted.workers import processors

    if len(sources) > 1:
        raise InputError("a standard stream and other files cannot be mixed")
    to_stream = target == STREAM
    if to_stream and embedded is None:
        raise InputError(
            "an encrypted file is bound to a path, and standard output has none",
            hint="say it: --as PATH",
        )
    if to_stream and sys.stdout.isatty():
        raise InputError("an encrypted file would go to the terminal")
    with progress("Encrypting", 0) as advance:
        whole.encrypt(
            data_input() if str(sources[0]) == STREAM else sources[0],
            data_output() if to_stream else Path(target),
            key,
            normalise(embedded if embedded is not None else target),
            version=version,
            jobs=jobs or processors(),
            advance=advance,
        )
    return 0
