"""``cloister inspect``: what an encrypted file is, without its content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cloister.cli.batch import ANY, report
from cloister.errors import CloisterError
from cloister.text import printable


@click.command()
@click.argument("files", type=ANY, nargs=-1, required=True, metavar="FILE...")
@click.option("-k", "--key", "key_file", type=ANY, help="File of the wrap key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(files: tuple[Path, ...], key_file: Path | None, as_json: bool) -> int:
    """Show format version and sizes of encrypted files; with the key, what the key opens.

    That is the path each file is bound to, the size of its content, and whether the key fits.
    Only the first node is authenticated (`cloister verify` does all), and content is never shown.
    Exits with 3 if the key does not fit.

    \b
    Example:  cloister inspect -k wrap-key encrypted/result.txt
    """
    from cloister.encrypted.keys import read_wrap_key
    from cloister.encrypted.whole import describe

    key = None if key_file is None else read_wrap_key(key_file)
    answers: list[object] = []
    shown: list[dict[str, Any]] = []
    for file in files:
        try:
            facts = describe(file, key)
        except (CloisterError, OSError) as error:
            answers.append(error)
        else:
            answers.append(None)
            shown.append({"file": str(file), **facts._asdict()})
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        for facts_of_one in shown:
            _print(facts_of_one)
    code = report(files, answers)
    return max(code, 3 if any(facts["key_fits"] is False for facts in shown) else 0)


def _print(facts: dict[str, Any]) -> None:
    known = "known with the key: -k FILE" if facts["key_fits"] is None else "unknown"
    fits = {None: "not given (-k FILE)", True: "fits", False: "does not fit"}[facts["key_fits"]]
    system = {1: "Graphene", 2: "Gramine"}[facts["version"]]
    pending = "was interrupted: cloister recover" if facts["pending_write"] else "none unfinished"
    size, path = facts["content_size"], facts["embedded_path"]
    click.echo(printable(facts["file"]))
    for name, value in (
        ("version", f"{facts['version']} ({system})"),
        ("encrypted size", f"{facts['host_size']} bytes"),
        ("content size", known if size is None else f"{size} bytes"),
        ("embedded path", known if path is None else printable(path)),
        ("key", fits),
        ("write", pending),
    ):
        click.echo(f"  {name:<15} {value}")
