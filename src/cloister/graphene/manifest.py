"""``graphene-manifest``: render a manifest template; nothing is checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cloister.cli.main import run_command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--string", help="Text of the template, instead of INFILE.")
@click.option("-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", help="A variable.")
@click.argument("infile", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.argument("outfile", default="-", type=click.Path(path_type=Path, allow_dash=True))
def command(
    string: str | None, defines: tuple[str, ...], infile: Path | None, outfile: Path
) -> None:
    """Render the template INFILE and write it to OUTFILE [default: standard output].

    \b
    Example:  graphene-manifest -Dlog_level=error app.manifest.template app.manifest
    """
    from cloister.cli.manifest import read, shown, write
    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.template import Template

    if (infile is None) == (string is None):
        raise click.UsageError("specify exactly one of (infile, -c)")
    if infile is not None:
        text, source = read(infile), shown(infile)
    else:
        text, source = string or "", "-c"
    rendered = Template(text, parse_definitions(defines), source=source).render()
    write(outfile, rendered)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, list(arguments), "graphene-manifest")


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
