"""``cloister sign``: measure and sign a rendered manifest, with Gramine's options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.manifest.prepare import Prepared

FILE = click.Path(path_type=Path)


@click.command()
@click.option("-m", "--manifest", type=FILE, required=True, help="Rendered manifest.")
@click.option("-o", "--output", type=FILE, required=True, help="Where the signed one goes.")
@click.option("-s", "--sigfile", type=FILE, help="SIGSTRUCT [default: APP.sig beside --manifest]")
@click.option("-k", "--key", type=FILE, help="Signing key in PEM [default: your own]")
@click.option(
    "--passphrase-file", type=FILE, help="File whose first line opens the key; else you are asked."
)
@click.option("-l", "--libpal", type=FILE, help="Measured runtime [default: this version's]")
@click.option("-d", "--date", default="today", help="Date of the signature, YYYY-MM-DD.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["cloister", "gramine"]),
    default="cloister",
    show_default=True,
    help="How trusted files that have no hash yet are listed.",
)
@click.option("--no-cache", is_flag=True, help="Hash every file, also those that did not change.")
@click.option("--to-be-signed", type=FILE, help="Do not sign: write the 256 bytes to be signed.")
@click.option("--public-key", type=FILE, help="For --to-be-signed: PEM of the key that will sign.")
@click.option("--depfile", type=FILE, help="Also write a rule for make: what OUTPUT is made of.")
@click.option("-v/-q", "--verbose/--quiet", default=True, help="Print what was signed, or nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def sign(
    manifest: Path,
    output: Path,
    sigfile: Path | None,
    key: Path | None,
    passphrase_file: Path | None,
    libpal: Path | None,
    date: str,
    form: str,
    no_cache: bool,
    to_be_signed: Path | None,
    public_key: Path | None,
    depfile: Path | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Measure and sign a rendered manifest. A manifest with all hashes is signed byte for byte.

    Keys in an HSM sign in two steps: --to-be-signed, then `cloister sigstruct attach`.

    \b
    Example:  cloister sign -m app.manifest -o app.manifest.sgx
              cloister sign -m app.manifest -o app.manifest.sgx --to-be-signed app.tbs \\
                  --public-key hsm.pem
    """
    from cloister.cli import signing
    from cloister.errors import InputError
    from cloister.files import write_together
    from cloister.manifest import sign as core
    from cloister.manifest.build import Built
    from cloister.manifest.signing_key import load_modulus

    if (to_be_signed is None) != (public_key is None):
        raise InputError("--to-be-signed and --public-key go together")
    settings = signing.settings(libpal, form, use_cache=not no_cache)
    read = core.read_manifest(manifest)
    prepared = core.prepare_file(read, settings)
    date = signing.choose_date(date)
    files = core.outputs(prepared, output)
    sigfile = core.sigstruct_path(manifest) if sigfile is None else sigfile
    made = (*files, to_be_signed or sigfile, depfile)
    given = (core.kept_apart(read, prepared), key, passphrase_file, libpal, public_key)
    core.require_apart(made, (*given, *core.trusted_among(read, made)))
    if depfile is not None:
        needed = [*core.trusted_names(read), *filter(None, (libpal, key))]
        files[depfile] = os.fsencode(core.rule_for_make([output], needed))
    if to_be_signed is not None and public_key is not None:
        unsigned = prepared.sigstruct(load_modulus(public_key), date)
        written = write_together({to_be_signed: unsigned.to_be_signed(), **files})
        result = Built(written, prepared, unsigned)
    else:
        private = signing.choose_key(key, passphrase_file)
        modulus = private.public_key().public_numbers().n
        signed = prepared.sigstruct(modulus, date).sign(private)
        result = Built(write_together({sigfile: signed.pack(), **files}), prepared, signed)
    if as_json:
        signing.show(result, as_json=True)
    elif verbose:
        describe(result.prepared)


def describe(prepared: Prepared) -> None:
    """Print attributes, memory layout and measurement in the words of Gramine's signer."""
    from cloister.manifest.describe import describe_gramine

    for note in prepared.notes:
        click.echo(f"note: {note}", err=True)
    click.echo("\n".join(describe_gramine(prepared)))
