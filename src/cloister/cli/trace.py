"""``cloister trace``: run a program, see what it opens, and propose a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.manifest.parse import ManifestText

FILE = click.Path(path_type=Path, allow_dash=True)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=False, type=click.UNPROCESSED)
@click.option("-e", "--env", "variables", multiple=True, metavar="NAME=VALUE", help="A variable.")
@click.option(
    "--manifest",
    "existing",
    type=click.Path(path_type=Path),
    help="Run this manifest or template in direct mode instead, with COMMAND as arguments, and add"
    " to it.",
)
@click.option(
    "-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", help="What {{ NAME }} means."
)
@click.option(
    "--allow-outputs",
    is_flag=True,
    help="INSECURE: leave outputs open to the host instead of encrypting them.",
)
@click.option(
    "--key-server", metavar="HOST:PORT", help="Where the enclave gets the key for its outputs."
)
@click.option(
    "--ca-chain",
    type=click.Path(path_type=Path),
    help="For --key-server: certificates by which the program knows the server.",
)
@click.option(
    "--test-key", is_flag=True, help="INSECURE: write a new key for outputs into the manifest."
)
@click.option(
    "-o", "--output", type=FILE, default=Path("-"), help="File to write [default: standard output]"
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write JSON instead: the manifest as a text, notes, exit code.",
)
def trace(
    command: tuple[str, ...],
    variables: tuple[str, ...],
    existing: Path | None,
    defines: tuple[str, ...],
    allow_outputs: bool,
    key_server: str | None,
    ca_chain: Path | None,
    test_key: bool,
    output: Path,
    as_json: bool,
) -> int:
    """Run COMMAND without an enclave, record which files it opens, and propose a manifest.

    The program gets only the variables of --env, as it would in its enclave, and really writes its
    outputs. Exits with the program's own code.

    \b
    Example:  cloister trace --test-key -o app.manifest.template -- python3 app.py input.jpg
              cloister trace --manifest app.manifest.template -o app.manifest.template
    """
    import json
    import os
    import secrets

    from cloister.cli.caller import callers_environment
    from cloister.cli.manifest import write
    from cloister.cli.streams import tell
    from cloister.errors import InputError
    from cloister.manifest.propose import Keys, merge, propose
    from cloister.runtime.journal import Journal
    from cloister.runtime.program import Program
    from cloister.runtime.watch import native_program, watch

    if (key_server is None) != (ca_chain is None):
        raise InputError("--key-server and --ca-chain go together")
    if ca_chain is not None and not ca_chain.is_file():
        raise InputError(f"{ca_chain}: there is no such file")
    journal = Journal(tell)
    if existing is not None:
        if variables or allow_outputs or key_server or test_key:
            raise InputError("--env, keys and --allow-outputs are for runs without --manifest")
        text, source, read = existing_manifest(existing, defines)
        base = existing.resolve().parent
        program = Program(text.manifest, base, command, callers_environment())
        code, observed = watch(program, journal)
        proposal = merge(observed, text, source, read)
    elif defines:
        raise InputError("-D is for the template that --manifest names")
    else:
        environment = {"PYTHONDONTWRITEBYTECODE": "1", **parse_variables(variables)}
        words = (absolute(command), *command[1:])
        program = native_program(words, Path.cwd(), environment, os.getuid(), os.getgid())
        code, observed = watch(program, journal)
        keys = Keys(
            server=key_server,
            ca_chain=None if ca_chain is None else str(ca_chain.resolve()),
            test=secrets.token_hex(16) if test_key else None,
        )
        proposal = propose(observed, allow_outputs=allow_outputs, keys=keys)
    if code != 0:
        journal.note(f"the program ended with code {code}; what it had not yet opened is missing")
    for note in proposal.notes:
        journal.note(note)
    if as_json:
        facts = {"manifest": proposal.text, "notes": list(proposal.notes), "exit_code": code}
        write(output, json.dumps(facts, indent=2) + "\n")
    else:
        write(output, proposal.text)
    return code


def existing_manifest(
    path: Path, defines: tuple[str, ...]
) -> tuple[ManifestText, str, Callable[[str], ManifestText]]:
    """Return a manifest, what its file holds, and what reads a changed file's text.

    Args:
        path: a manifest, or a template.
        defines: NAME=VALUE for a template.
    """
    from cloister.cli.manifest import read
    from cloister.errors import InputError
    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.parse import ManifestText
    from cloister.manifest.sign import read_manifest
    from cloister.manifest.signed import TEMPLATE_SUFFIX
    from cloister.manifest.template import Template

    if not path.name.endswith(TEMPLATE_SUFFIX):
        if defines:
            raise InputError(f"{path} is no template, so that -D means nothing")
        text = read_manifest(path).text
        return text, text.text, lambda changed: ManifestText(changed, str(path))
    definitions = parse_definitions(defines)

    def rendered(source: str) -> ManifestText:
        template = Template(source, definitions, source=str(path))
        return ManifestText(template.render(), str(path), template.line_of)

    source = read(path)
    return rendered(source), source, rendered


def absolute(command: tuple[str, ...]) -> str:
    """Return the absolute path of the program, as a shell would find it."""
    import shutil

    from cloister.errors import InputError

    if not command:
        raise InputError("which program? Give COMMAND, or --manifest")
    found = shutil.which(command[0])
    if found is None:
        raise InputError(f"{command[0]}: there is no such program")
    return str(Path(found).absolute())


def parse_variables(texts: tuple[str, ...]) -> dict[str, str]:
    """Parse NAME=VALUE."""
    from cloister.errors import InputError

    variables = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--env {text!r}: expected NAME=VALUE")
        variables[name] = value
    return variables
