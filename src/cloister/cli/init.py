"""``cloister init``: from a user's script to a project that is ready for its enclave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.project.kinds import Kind

_HELP = "Directory to make [default: SCRIPT's name with -confidential]"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--output", type=click.Path(path_type=Path), help=_HELP)
@click.option("--python", metavar="PYTHON", help="The Python that has SCRIPT's packages.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
@click.argument("words", nargs=-1, required=True, metavar="[KIND] SCRIPT [ARGUMENTS]...")
def init(output: Path | None, python: str | None, as_json: bool, words: tuple[str, ...]) -> None:
    """Make a project of SCRIPT: manifest, keys, policy, Makefile, README.

    SCRIPT is run once, without an enclave, to see what it needs. KIND is pytorch, onnxruntime,
    openvino, tensorflow, sklearn, fastapi or python; left out, SCRIPT's imports tell. A FastAPI
    service (an `app`) is only imported.

    \b
    Example:  cloister init classify.py
              cloister init -o confidential sklearn train.py --epochs 3
              cloister try confidential
    """
    import json

    from cloister.cli.streams import tell
    from cloister.project.create import Source, application, create, inspect, names_its_directory
    from cloister.project.sorting import INSIDE
    from cloister.runtime.journal import Journal

    kind, script, arguments = _parse(words)
    directory = output or Path(f"{application(script)}-confidential")
    _require_new(directory)
    if python is not None and Path(python).exists():  # else it is a name to be looked for in PATH
        python = str(Path(python).absolute())  # the project is built from another directory
    source = Source(script, arguments, kind, python)
    journal = Journal(tell)
    files = inspect(source, journal)
    project = create(source, files, directory)
    made = {
        "directory": str(directory),
        "app": project.app,
        "kind": kind.name,
        "code": list(files.code),
        "data": list(files.data),
        "results": list(files.results),
        "elsewhere": list(files.elsewhere),
        "absolute": names_its_directory(source, files),
        "lost": list(files.lost),
    }
    if as_json:
        click.echo(json.dumps(made))
        return
    click.echo(
        f"{directory}: {kind.name}, {len(files.code)} files of code, {len(files.data)} inputs"
    )
    for path in files.elsewhere:
        click.echo(f"note: reads {path}, now a trusted file: the host can read it, not change it")
    for name in names_its_directory(source, files):
        click.echo(
            f"note: {name} has the absolute path of its own directory, which is {INSIDE} in the "
            "enclave: use a relative path"
        )
    for path in files.lost:
        click.echo(f"note: writes {path}, outside of its directory: the enclave will refuse that")
    click.echo(f"next: cloister try {directory}")


def _parse(words: tuple[str, ...]) -> tuple[Kind, Path, tuple[str, ...]]:
    from cloister.errors import InputError
    from cloister.project.kinds import KINDS, kind_named, kind_of

    names = [kind.name for kind in KINDS]
    kind = kind_named(words[0]) if words[0] in names and not Path(words[0]).is_file() else None
    rest = words if kind is None else words[1:]
    if not rest:
        raise InputError("which script? Give its path")
    script = Path(rest[0])
    if not script.is_file():
        near = "" if "." in rest[0] or len(rest) == 1 else f"; kinds are: {', '.join(names)}"
        raise InputError(f"{script}: there is no such script{near}")
    if kind is None:
        kind = kind_of(script.read_text(encoding="utf-8", errors="replace"))
    return kind, script, rest[1:]


def _require_new(directory: Path) -> None:
    from cloister.errors import InputError

    if directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"{directory}: exists and is not empty; expected a new directory",
            hint="name another one with --output",
        )
