"""``cloister report``: a page for people who would rather look than read."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path, allow_dash=True)


@click.command()
@click.argument("record", metavar="FILE", type=_FILE)
@click.option(
    "--audit",
    metavar="FILE",
    type=_FILE,
    help="The key server's decisions, from `cloister audit show --json`.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=_FILE,
    help="The page [default: the record's name with .html; - is standard output]",
)
def report(record: Path, audit: Path | None, output: Path | None) -> None:
    """Make one HTML page of a run that `cloister run --record FILE` wrote down.

    The page needs nothing else, no network and no scripts, and prints well. It tells who proved
    what to whom, what was measured, which files were used, what was denied, and where the time
    went. Only you can read it, until you share it.

    \b
    Example:  cloister run --record run.json pytorch
              cloister report run.json
              cloister audit show --store keys.db --json | cloister report run.json --audit -
    """
    from cloister.cli.manifest import read, shown, write
    from cloister.errors import InputError
    from cloister.report.page import render
    from cloister.report.record import read_decisions, read_record
    from cloister.text import printable

    if output is None:
        output = record if str(record) == "-" else record.with_suffix(".html")
    if output == record and str(record) != "-":
        raise InputError(f"{record}: the page would replace the record", hint="name one with -o")
    run = read_record(read(record), shown(record))
    decisions = None if audit is None else read_decisions(read(audit), shown(audit))
    write(output, render(run, decisions), mode=0o600)
    if str(output) != "-":
        click.echo(printable(str(output)))
