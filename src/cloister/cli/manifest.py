"""``cloister manifest``: render, check, explain and convert manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.streams import data_input

if TYPE_CHECKING:
    from cloister.manifest.parse import ManifestText

FILE = click.Path(path_type=Path, allow_dash=True)
defines = click.option(
    "-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", help="What {{ NAME }} means."
)
output = click.option(
    "-o", "--output", type=FILE, default=Path("-"), help="File to write [default: standard output]"
)


@click.group()
def manifest() -> None:
    """Render, check, explain and convert manifests.

    A FILE whose name ends with .template is rendered first; - is standard input.

    \b
    Example:  cloister manifest explain pytorch.manifest.template
    """


@manifest.command()
@click.argument("template", type=FILE)
@defines
@output
def render(template: Path, defines: tuple[str, ...], output: Path) -> None:
    """Render TEMPLATE and write the text, without checking it.

    \b
    Example:  cloister manifest render app.manifest.template -D log_level=error -o app.manifest
    """
    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.template import Template

    rendering = Template(read(template), parse_definitions(defines), source=shown(template))
    write(output, rendering.render())


@manifest.command()
@click.argument("file", type=FILE)
@defines
@click.option("--no-files", is_flag=True, help="Do not look whether trusted files exist.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, defines: tuple[str, ...], no_files: bool, as_json: bool) -> int:
    """Check FILE and report everything that is wrong; exit with 2 if anything is.

    \b
    Example:  cloister manifest check app.manifest.template
    """
    import json

    from cloister.errors import ManifestError
    from cloister.manifest.check import file_problems, mount_problems

    try:
        text = load(file, defines)
        found = list(mount_problems(text))
        if not no_files:
            found += file_problems(text, base_of(file))
    except ManifestError as error:
        found = [error, *(ManifestError(other) for other in error.others)]
    if as_json:
        problems = [{"problem": each.message, "hint": each.hint} for each in found]
        click.echo(json.dumps({"file": shown(file), "ok": not found, "problems": problems}))
        return 2 if found else 0
    for problem in found:
        click.echo(f"cloister: error: {problem.message}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)
    if not found:
        click.echo(f"{shown(file)}: ok")
    return 2 if found else 0


@manifest.command()
@click.argument("file", type=FILE)
@defines
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(file: Path, defines: tuple[str, ...], as_json: bool) -> None:
    """Say what the enclave can read, write and execute, and what FILE leaves to the host.

    \b
    Example:  cloister manifest explain app.manifest.template
    """
    import dataclasses
    import json

    from cloister.manifest import explain as explaining

    explanation = explaining.explain(load(file, defines))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(explanation), indent=2))
    else:
        explaining.show(explanation, click.echo)


@manifest.command()
@click.argument("file", type=FILE)
@click.option("--to", "dialect", type=click.Choice(["gramine", "graphene"]), required=True)
@output
def convert(file: Path, dialect: str, output: Path) -> None:
    """Write FILE in the other dialect; what cannot be said there is an error.

    FILE is a manifest, or a template whose tags are all inside of quoted texts. Comments are lost.

    \b
    Example:  cloister manifest convert old.manifest --to gramine -o new.manifest
    """
    import tomli_w

    from cloister.manifest.convert import to_gramine, to_graphene
    from cloister.manifest.parse import ManifestText

    text = ManifestText(read(file), shown(file))
    base = base_of(file)
    if dialect == "gramine":
        converted = to_gramine(text, lambda path: (base / path).is_dir())
    else:
        converted = to_graphene(text)
    for note in converted.notes:
        click.echo(f"note: {note}", err=True)
    write(output, tomli_w.dumps(converted.document))


def load(file: Path, defines: tuple[str, ...]) -> ManifestText:
    """Read a manifest; one whose name ends with ``.template`` is rendered."""
    from cloister.errors import InputError
    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.parse import ManifestText
    from cloister.manifest.template import Template

    text = read(file)
    if file.suffix == ".template":
        rendering = Template(text, parse_definitions(defines), source=str(file))
        return ManifestText(rendering.render(), str(file), rendering.line_of)
    if defines:
        raise InputError(
            f"-D {defines[0]}: {shown(file)} is no template",
            hint="the name of a template ends with .template",
        )
    return ManifestText(text, shown(file))


def read(file: Path) -> str:
    """Read a text file; ``-`` is standard input."""
    from cloister.errors import InputError

    try:
        data = data_input().read() if str(file) == "-" else file.read_bytes()
        return data.decode()
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(file)}: not UTF-8 text") from error


def write(file: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a text file whole or not at all; ``-`` is standard output."""
    from cloister.files import write_atomically

    if str(file) == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(file, text.encode(), mode=mode)


def shown(file: Path) -> str:
    """Return what messages call a file."""
    return "standard input" if str(file) == "-" else str(file)


def base_of(file: Path) -> Path:
    """Return the directory where relative URIs of a manifest start."""
    return Path() if str(file) == "-" else file.parent
