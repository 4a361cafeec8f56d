"""``cloister key``: make and look at wrap keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cloister.cli.batch import ANY
from cloister.cli.streams import data_output


@click.group()
def key() -> None:
    """Make and look at wrap keys: 16 bytes that open a set of encrypted files.

    \b
    Example:  cloister key new wrap-key
    """


@key.command()
@click.argument("file", type=ANY)
@click.option("--hex", "as_hex", is_flag=True, help="32 hex digits instead of 16 raw bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(file: Path, as_hex: bool, as_json: bool) -> None:
    """Make a new random key in FILE, which only you can read and which must not exist.

    Prints the key's fingerprint. Keep a copy of the file where nobody else can read it: without
    it nobody opens your files again.

    \b
    Example:  cloister key new wrap-key
    """
    from cloister.encrypted.keys import fingerprint, generate
    from cloister.files import write_atomically

    secret = generate()
    content = f"{secret.hex()}\n".encode() if as_hex else secret
    write_atomically(file, content, mode=0o600, replace=False)
    if as_json:
        click.echo(json.dumps({"file": str(file), "fingerprint": fingerprint(secret)}))
    else:
        click.echo(f"{file}: new wrap key, fingerprint {fingerprint(secret)}")


@key.command()
@click.argument("file", type=ANY)
@click.option("--raw", is_flag=True, help="Write the 16 raw bytes, not hex digits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path, raw: bool, as_json: bool) -> None:
    """Print the key itself, as 32 hex digits: anyone who sees them can open your files.

    \b
    Example:  cloister key show wrap-key
              cloister key show --raw wrap-key.hex > wrap-key
    """
    from cloister.encrypted.keys import read_wrap_key
    from cloister.errors import InputError

    if raw and as_json:
        raise InputError("--raw and --json exclude each other")
    if raw and sys.stdout.isatty():
        raise InputError(
            "raw key bytes would go to the terminal",
            hint="send them to a file, or leave out --raw",
        )
    secret = read_wrap_key(file)
    if raw:
        data_output().write(secret)
        data_output().flush()
    elif as_json:
        click.echo(json.dumps({"file": str(file), "key": secret.hex()}))
    else:
        click.echo(secret.hex())


@key.command("fingerprint")
@click.argument("files", type=ANY, nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_fingerprint(files: tuple[Path, ...], as_json: bool) -> None:
    """Print a short name for each key, which does not betray it.

    Two files with the same fingerprint hold the same key, raw or hex.

    \b
    Example:  cloister key fingerprint wrap-key
    """
    from cloister.encrypted.keys import fingerprint, read_wrap_key

    found = [(str(file), fingerprint(read_wrap_key(file))) for file in files]
    if as_json:
        click.echo(json.dumps([{"file": name, "fingerprint": value} for name, value in found]))
        return
    for name, value in found:
        click.echo(f"{value}  {name}")
