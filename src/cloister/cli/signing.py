"""What the commands that sign have in common."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.progress import progress
from cloister.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from cloister.manifest.build import Built
    from cloister.manifest.prepare import Settings
    from cloister.platforms.gramine.build import GramineBuilt


def choose_key(path: Path | None, passphrase_file: Path | None = None) -> RSAPrivateKey:
    """Load the signing key at ``path``; None takes the user's own, which is made on first use.

    An encrypted key asks for its passphrase if no file gives it and a person is there.
    """
    from cloister.errors import EncryptedKeyError
    from cloister.manifest import signing_key

    if path is None:
        return signing_key.load_or_create_default_key()
    if passphrase_file is not None:
        return signing_key.load_signing_key(path, read_passphrase(passphrase_file))
    try:
        return signing_key.load_signing_key(path)
    except EncryptedKeyError:
        if not sys.stdin.isatty():
            raise
        typed = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
        return signing_key.load_signing_key(path, typed.encode())


def read_passphrase(path: Path) -> bytes:
    """Return the first line of a file.

    Raises:
        InputError: it does not exist, or its first line is empty.
    """
    try:
        line = path.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    if not line:
        raise InputError(f"{path}: the first line is empty, expected a passphrase")
    return line


def choose_libpal(path: Path | None) -> bytes:
    """Read the runtime image at ``path``; None takes the one of this installation."""
    from cloister.platforms.image import runtime_image

    if path is None:
        return runtime_image()
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such runtime image") from error


def choose_date(text: str) -> str:
    """Turn ``today`` into a date; the rest is checked where it is encoded."""
    return datetime.datetime.now().date().isoformat() if text == "today" else text


def settings(libpal: Path | None, form: str, *, use_cache: bool, whole: bool = False) -> Settings:
    """Return how a manifest is prepared, as the options say."""
    from cloister.manifest.prepare import Format, Settings

    return Settings(
        libpal=choose_libpal(libpal),
        now=datetime.datetime.now(datetime.timezone.utc),
        format=Format(form),
        whole=whole,
        use_cache=use_cache,
        show=hashing,
    )


def hashing(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show how far the hashing of trusted files is."""
    return progress("hashing trusted files", total)


def summary(built: Built) -> dict[str, Any]:
    """Return what is said of a signed enclave."""
    sigstruct, sgx = built.sigstruct, built.prepared.manifest.sgx
    amount = built.prepared.amount
    return {
        "mrenclave": sigstruct.mr_enclave.hex(),
        "mrsigner": sigstruct.mr_signer.hex(),
        "isv_prod_id": sigstruct.isv_prod_id,
        "isv_svn": sigstruct.isv_svn,
        "debug": sigstruct.debug,
        "enclave_size": sgx.enclave_size,
        "max_threads": sgx.max_threads,
        "trusted_files": amount.files,
        "trusted_bytes": amount.size,
        "hashed_files": amount.hashed,
        "files": [str(path) for path in built.files],
    }


def show(built: Built, gramine: GramineBuilt | None = None, *, as_json: bool) -> None:
    """Print what is said of a signed enclave, and notes for its builder on standard error.

    Args:
        built: our own.
        gramine: the same for Gramine, if it was built for it too.
        as_json: print one JSON object.
    """
    facts = summary(built)
    for note in built.prepared.notes:
        click.echo(f"note: {note}", err=True)
    if gramine is not None:
        for note in gramine.built.prepared.notes:
            click.echo(f"note for Gramine: {note}", err=True)
        facts["gramine"] = {
            "installed": gramine.title,
            "measured_by_gramine": gramine.theirs.hex(),
            **summary(gramine.built),
        }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"MRENCLAVE   {facts['mrenclave']}")
    click.echo(f"MRSIGNER    {facts['mrsigner']}")
    click.echo(f"product id  {facts['isv_prod_id']}")
    click.echo(f"SVN         {facts['isv_svn']}")
    click.echo(
        f"trusted     {facts['trusted_files']} files, {facts['trusted_bytes'] / 1e6:.1f} MB,"
        f" {facts['hashed_files']} of them hashed now"
    )
    click.echo(f"wrote       {', '.join(facts['files'])}")
    if gramine is not None:
        theirs = facts["gramine"]
        click.echo(f"for {theirs['installed']} on SGX, the same program measures otherwise:")
        click.echo(f"MRENCLAVE   {theirs['mrenclave']}")
        click.echo(f"the same by gramine-sgx-sign: {theirs['measured_by_gramine']}")
        click.echo(f"wrote       {', '.join(theirs['files'])}")
    if facts["debug"]:
        click.echo(
            "DEBUG       sgx.debug = true: anybody on the machine can read this enclave's memory;"
            " key servers refuse it"
        )
