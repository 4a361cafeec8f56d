"""``cloister sigstruct``: show, verify and complete SIGSTRUCT files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.sgx.sigstruct import Sigstruct

FILE = click.Path(path_type=Path)


@click.group()
def sigstruct() -> None:
    """Show, verify and complete SIGSTRUCT files (APP.sig).

    \b
    Example:  cloister sigstruct verify app.sig
    """


@sigstruct.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path, as_json: bool) -> None:
    """Print what FILE says of the enclave. The signature is not checked; see verify.

    \b
    Example:  cloister sigstruct show --json app.sig
    """
    import json

    from cloister.manifest.describe import sigstruct_facts

    facts = sigstruct_facts(load(file))
    if as_json:
        click.echo(json.dumps(facts, indent=4))
        return
    for name, value in facts.items():
        click.echo(f"{name:<21} {value}")


@sigstruct.command()
@click.argument("file", type=FILE)
@click.option("--mrenclave", metavar="HEX", help="Expected measurement.")
@click.option("--mrsigner", metavar="HEX", help="Expected signer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: Path, mrenclave: str | None, mrsigner: str | None, as_json: bool) -> None:
    """Check the signature of FILE, its Q1 and Q2; exit with 3 if it is wrong.

    \b
    Example:  cloister sigstruct verify app.sig --mrsigner $(cat trusted-signer)
    """
    import json

    from cloister.errors import SigstructError
    from cloister.manifest.describe import sigstruct_facts

    found = load(file)
    try:
        found.verify()
    except SigstructError as error:
        raise SigstructError(f"{file}: {error.message}") from error
    expect(file, "MRENCLAVE", found.mr_enclave, mrenclave)
    expect(file, "MRSIGNER", found.mr_signer, mrsigner)
    if as_json:
        click.echo(json.dumps({"valid": True, **sigstruct_facts(found)}, indent=4))
    else:
        click.echo(f"{file}: signed by {found.mr_signer.hex()}, Q1 and Q2 fit")


@sigstruct.command()
@click.argument("to_be_signed", type=FILE)
@click.option("--public-key", type=FILE, required=True, help="PEM of the key that signed.")
@click.option("--signature", type=FILE, required=True, help="The signature, 384 bytes.")
@click.option("-o", "--output", type=FILE, required=True, help="The SIGSTRUCT, APP.sig.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def attach(
    to_be_signed: Path, public_key: Path, signature: Path, output: Path, as_json: bool
) -> None:
    """Make a SIGSTRUCT of what `cloister sign --to-be-signed` wrote and its signature.

    \b
    Example:  openssl dgst -sha256 -sign hsm-key.pem -out app.signature app.tbs
              cloister sigstruct attach app.tbs --public-key hsm.pem \\
                  --signature app.signature -o app.sig
    """
    import json

    from cloister.files import write_atomically
    from cloister.manifest.describe import sigstruct_facts
    from cloister.manifest.sign import attach as attach_signature
    from cloister.manifest.signing_key import load_modulus

    made = attach_signature(read(to_be_signed), load_modulus(public_key), read(signature))
    write_atomically(output, made.pack())
    if as_json:
        click.echo(json.dumps({"file": str(output), **sigstruct_facts(made)}, indent=4))
        return
    click.echo(f"MRENCLAVE   {made.mr_enclave.hex()}")
    click.echo(f"MRSIGNER    {made.mr_signer.hex()}")
    click.echo(f"wrote       {output}")


def load(file: Path) -> Sigstruct:
    """Read a SIGSTRUCT file."""
    from cloister.errors import SigstructError
    from cloister.sgx.sigstruct import Sigstruct

    try:
        return Sigstruct.unpack(read(file))
    except SigstructError as error:
        raise SigstructError(f"{file}: {error.message}") from error


def read(file: Path) -> bytes:
    """Read a file that must be there."""
    from cloister.errors import InputError

    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file") from error


def expect(file: Path, name: str, found: bytes, expected: str | None) -> None:
    """Refuse another value than the one the caller expects."""
    from cloister.errors import InputError, SigstructError

    if expected is None:
        return
    try:
        wanted = bytes.fromhex(expected)
    except ValueError as error:
        raise InputError(f"{expected!r}: expected {name} as 64 hexadecimal digits") from error
    if wanted != found:
        raise SigstructError(f"{file}: {name} is {found.hex()}, expected {expected}")
