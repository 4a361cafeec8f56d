"""``cloister decrypt``: the content of encrypted files, if every byte is authentic."""

from __future__ import annotations

import json
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


@click.command()
@click.argument("sources", type=ANY, nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", type=click.Path())
@key_option
@click.option(
    "--as",
    "embedded",
    metavar="PATH",
    callback=not_empty,
    help="Path that the file must be bound to.",
)
@click.option("--any-path", is_flag=True, help="Accept files that were bound to another name.")
@json_option
@jobs_option
def decrypt(
    sources: tuple[Path, ...],
    target: str,
    key_file: Path,
    embedded: str | None,
    any_path: bool,
    as_json: bool,
    jobs: int | None,
) -> int:
    """Decrypt SOURCE to TARGET.

    A file becomes the file TARGET; the files of a directory keep their places in the directory
    TARGET; several sources are put into the directory TARGET under their names. `-` is standard
    input or output, which gets nothing unless the whole file is authentic.

    The path that a file is bound to must end in the file's name (below SOURCE, for a directory):
    so nobody can exchange your files for each other. `--as` compares the whole path.

    \b
    Example:  cloister decrypt -k wrap-key encrypted/result.txt -
              cloister decrypt -k wrap-key encrypted results
    """
    from cloister.encrypted.keys import read_wrap_key

    key = read_wrap_key(key_file)
    if embedded is not None and (len(sources) > 1 or sources[0].is_dir()):
        raise InputError("--as names the path of one file")
    if STREAM in (target, *map(str, sources)):
        if as_json:
            raise InputError("--json is for files: it would mix with what goes to a stream")
        return _stream(sources, target, key, embedded, any_path, jobs)
    return _files(sources, target, key, embedded, any_path, jobs, as_json)


def _files(
    sources: tuple[Path, ...],
    target: str,
    key: bytes,
    embedded: str | None,
    any_path: bool,
    jobs: int | None,
    as_json: bool,
) -> int:
    from cloister.encrypted import trees, whole

    plan = trees.pair(sources, Path(target), directory=target.endswith("/"))

    def operate(index: int, jobs: int, advance: Advance) -> None:
        each = plan.pairs[index]
        expected = whole.Expected.of(each.relative, embedded, any_path=any_path)
        whole.decrypt(each.source, each.target, key, expected, jobs=jobs, advance=advance)

    trees.make_directories(plan)
    paths = [each.source for each in plan.pairs]
    answers = work_through("Decrypting", paths, operate, jobs=jobs)
    if as_json:
        results = [
            {
                "source": str(each.source),
                "target": str(each.target),
                "error": reason(each.source, answer),
            }
            for each, answer in zip(plan.pairs, answers, strict=True)
        ]
        click.echo(json.dumps(results, indent=2))
    code = report(paths, answers, plan)
    if code == 0:
        say(f"{counted(len(plan.pairs))} decrypted to {target}")
    return code


def _stream(
    sources: tuple[Path, ...],
    target: str,
    key: bytes,
    embedded: str | None,
    any_path: bool,
    jobs: int | None,
) -> int:
    from cloister.encrypted import trees, whole
    from cloister.encrypted.workers import processors

    if len(sources) > 1:
        raise InputError("a standard stream and other files cannot be mixed")
    source = sources[0]
    from_stream = str(source) == STREAM
    if not from_stream:
        trees.find([source])
    expected = whole.Expected.of(source.name, embedded, any_path=any_path or from_stream)
    size = 0 if from_stream else source.stat().st_size
    with progress("Decrypting", size) as advance:
        whole.decrypt(
            data_input() if from_stream else source,
            data_output() if target == STREAM else Path(target),
            key,
            expected,
            jobs=jobs or processors(),
            advance=advance,
        )
    return 0
