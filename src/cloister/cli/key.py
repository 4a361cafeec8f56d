"""``cloister key``: make and look at wrap keys."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloister.cli.batch import ANY


@click.group()
def key() -> None:
    """Make and look at wrap keys: 16 bytes that open a set of encrypted files.

    \b
    Example:  cloister key new wrap-key
    """


@key.command()
@click.argument("file", type=ANY)
@click.option("--hex", "as_hex", is_flag=True, help="32 hex digits instead of 16 raw bytes.")
def new(file: Path, as_hex: bool) -> None:
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
    click.echo(f"{file}: new wrap key, fingerprint {fingerprint(secret)}")


@key.command()
@click.argument("file", type=ANY)
@click.option("--raw", is_flag=True, help="Write the 16 raw bytes, not hex digits.")
def show(file: Path, raw: bool) -> None:
    """Print the key itself, as 32 hex digits: anyone who sees them can open your files.

    \b
    Example:  cloister key show wrap-key
              cloister key show --raw wrap-key.hex > wrap-key
    """
    from cloister.encrypted.keys import read_wrap_key
    from cloister.errors import InputError

    if raw and sys.stdout.isatty():
        raise InputError(
            "raw key bytes would go to the terminal",
            hint="send them to a file, or leave out --raw",
        )
    secret = read_wrap_key(file)
    if raw:
        sys.stdout.buffer.write(secret)
        sys.stdout.buffer.flush()
    else:
        click.echo(secret.hex())


@key.command("fingerprint")
@click.argument("files", type=ANY, nargs=-1, required=True, metavar="FILE...")
def show_fingerprint(files: tuple[Path, ...]) -> None:
    """Print a short name for each key, which does not betray it.

    Two files with the same fingerprint hold the same key, raw or hex.

    \b
    Example:  cloister key fingerprint wrap-key
    """
    from cloister.encrypted.keys import fingerprint, read_wrap_key

    for file in files:
        click.echo(f"{fingerprint(read_wrap_key(file))}  {file}")
