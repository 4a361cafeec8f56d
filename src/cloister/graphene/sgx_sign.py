"""``graphene-sgx-sign``: hash, measure and sign a manifest, with Graphene's options and words."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cloister.cli.main import run_command

FILE = click.Path(path_type=Path)

_SUFFIXES = (".manifest.sgx.d", ".manifest.sgx", ".manifest")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--output", "-output", type=FILE, required=True, help="Signed manifest.")
@click.option("--manifest", "-manifest", type=FILE, required=True, help="Rendered manifest.")
@click.option("--key", "-key", type=FILE, required=True, help="Signing key in PEM.")
@click.option("--libpal", "-libpal", type=FILE, help="Measured runtime [default: this version's]")
@click.option("--depend", "-depend", is_flag=True, help="Only write what the files are made of.")
def command(output: Path, manifest: Path, key: Path, libpal: Path | None, depend: bool) -> None:
    """Sign a manifest: writes OUTPUT, and OUTPUT's name with .sig as SIGSTRUCT.

    The signed manifest is in Gramine's dialect, and the measurement is the one of the enclave that
    graphene-sgx starts here.

    \b
    Example:  graphene-sgx-sign --key enclave-key.pem --manifest app.manifest \\
                  --output app.manifest.sgx
    """
    import tomli

    from cloister.cli import signing
    from cloister.errors import ManifestError
    from cloister.files import write_atomically, write_together
    from cloister.manifest import sign
    from cloister.manifest.describe import describe_graphene

    sigstruct_path = output.with_name(f"{_stem(output)}.sig")
    try:
        read = sign.read_manifest(manifest)
    except ManifestError as error:
        if isinstance(error.__cause__, tomli.TOMLDecodeError):
            click.echo(f"Parsing {manifest} as TOML failed: {error.__cause__}", err=True)
            raise click.exceptions.Exit(1) from error
        raise
    if depend:
        needed = sign.trusted_names(read, only_unhashed=True)
        made = [output.with_name(f"{_stem(output)}.manifest.sgx"), sigstruct_path]
        rule = sign.rule_for_make(made, [*needed, *([libpal] if libpal else []), key])
        write_atomically(output, os.fsencode(rule))
        return
    prepared = sign.prepare_file(read, signing.settings(libpal, "cloister", use_cache=True))
    files = sign.outputs(prepared, output)
    written = (*files, sigstruct_path)
    given = (sign.kept_apart(read, prepared), key, libpal)
    sign.require_apart(written, (*given, *sign.trusted_among(read, written)))
    private = signing.choose_key(key)
    modulus = private.public_key().public_numbers().n
    signed = prepared.sigstruct(modulus, signing.choose_date("today")).sign(private)
    write_together({sigstruct_path: signed.pack(), **files})
    click.echo("\n".join(describe_graphene(prepared, signed)))


def _stem(output: Path) -> str:
    for suffix in _SUFFIXES:
        if output.name.endswith(suffix):
            return output.name.removesuffix(suffix)
    return output.name


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, list(arguments), "graphene-sgx-sign")


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
