"""``graphene-sgx-sigstruct-view``: what a SIGSTRUCT says; the signature is not checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cloister.cli.main import run_command

_BRIEF = ("mr_signer", "mr_enclave", "isv_prod_id", "isv_svn", "debug_enclave")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sigfile", type=click.Path(path_type=Path))
@click.argument("outfile", default="-", type=click.Path(path_type=Path, allow_dash=True))
@click.option("-v", "--verbose/--quiet", "-q", default=False, help="Print every field as text.")
@click.option(
    "--output-format", type=click.Choice(["text", "toml", "json"]), default="text", help="Form."
)
def command(sigfile: Path, outfile: Path, verbose: bool, output_format: str) -> None:
    """Print the fields of SIGFILE to OUTFILE [default: standard output].

    \b
    Example:  graphene-sgx-sigstruct-view --output-format json app.sig
    """
    import json

    import tomli_w

    from cloister.cli.manifest import write
    from cloister.cli.sigstruct import load
    from cloister.manifest.describe import sigstruct_facts

    facts = sigstruct_facts(load(sigfile))
    if output_format == "json":
        write(outfile, json.dumps(facts, indent=4))
    elif output_format == "toml":
        write(outfile, tomli_w.dumps(facts))
    else:
        write(outfile, _text(facts, verbose=verbose))


def _text(facts: dict[str, Any], *, verbose: bool) -> str:
    names = [*_BRIEF, *(name for name in facts if verbose and name not in _BRIEF)]
    return "\n".join(["Attributes:", *(f"    {name}: {facts[name]}" for name in names)]) + "\n"


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, list(arguments), "graphene-sgx-sigstruct-view")


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
