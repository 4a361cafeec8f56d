"""``cloister signing-key``: make signing keys and show whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.group("signing-key")
def signing_key() -> None:
    """Make signing keys, and show the MRSIGNER by which others know them.

    \b
    Example:  cloister signing-key new enclave-key.pem
    """


@signing_key.command()
@click.argument("file", type=FILE, required=False)
@click.option("--passphrase-file", type=FILE, help="Encrypt the key under this file's first line.")
@click.option("-f", "--force", is_flag=True, help="Replace FILE; what it signed stays as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(file: Path | None, passphrase_file: Path | None, force: bool, as_json: bool) -> None:
    """Make an RSA-3072 key with exponent 3 in FILE [default: your own key's place].

    \b
    Example:  cloister signing-key new enclave-key.pem
    """
    from cloister.cli.signing import read_passphrase
    from cloister.manifest.signing_key import create_signing_key, default_key_path
    from cloister.sgx.sigstruct import mr_signer

    path = default_key_path() if file is None else file
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    key = create_signing_key(path, passphrase, replace=force)
    signer = mr_signer(key.public_key().public_numbers().n).hex()
    if as_json:
        click.echo(json.dumps({"file": str(path), "mrsigner": signer}))
        return
    click.echo(f"wrote     {path}")
    click.echo(f"MRSIGNER  {signer}")


@signing_key.command()
@click.argument("file", type=FILE, required=False)
@click.option("--passphrase-file", type=FILE, help="File whose first line opens the key.")
@click.option("--public", is_flag=True, help="FILE is a public key or a certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path | None, passphrase_file: Path | None, public: bool, as_json: bool) -> None:
    """Print MRSIGNER of the key in FILE [default: your own key].

    \b
    Example:  cloister signing-key show enclave-key.pem
    """
    from cloister.cli.signing import choose_key
    from cloister.manifest.signing_key import default_key_path, load_modulus
    from cloister.sgx.sigstruct import mr_signer

    path = default_key_path() if file is None else file
    if public:
        modulus = load_modulus(path)
    else:
        modulus = choose_key(path, passphrase_file).public_key().public_numbers().n
    signer = mr_signer(modulus).hex()
    if as_json:
        click.echo(json.dumps({"file": str(path), "mrsigner": signer}))
    else:
        click.echo(f"MRSIGNER  {signer}")
