"""What the commands that sign have in common."""

from __future__ import annotations

import datetime
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


def choose_key(path: Path | None, passphrase: bytes | None = None) -> RSAPrivateKey:
    """Load the signing key at ``path``; None takes the user's own, which is made on first use."""
    from cloister.manifest.signing_key import load_or_create_default_key, load_signing_key

    return load_or_create_default_key() if path is None else load_signing_key(path, passphrase)


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


def hashing(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show how far the hashing of trusted files is."""
    return progress("hashing trusted files", total)


def summary(built: Built) -> dict[str, Any]:
    """Return what is said of a signed enclave."""
    sigstruct, sgx = built.sigstruct, built.manifest.sgx
    return {
        "mrenclave": sigstruct.mr_enclave.hex(),
        "mrsigner": sigstruct.mr_signer.hex(),
        "isv_prod_id": sigstruct.isv_prod_id,
        "isv_svn": sigstruct.isv_svn,
        "debug": sigstruct.debug,
        "enclave_size": sgx.enclave_size,
        "max_threads": sgx.max_threads,
        "trusted_files": len(built.digests.entries),
        "trusted_bytes": built.digests.size,
        "hashed_files": built.digests.hashed,
        "files": [str(path) for path in built.files],
    }


def show(built: Built) -> None:
    """Print what is said of a signed enclave, for people."""
    facts = summary(built)
    click.echo(f"MRENCLAVE   {facts['mrenclave']}")
    click.echo(f"MRSIGNER    {facts['mrsigner']}")
    click.echo(f"product id  {facts['isv_prod_id']}")
    click.echo(f"SVN         {facts['isv_svn']}")
    click.echo(
        f"trusted     {facts['trusted_files']} files, {facts['trusted_bytes'] / 1e6:.1f} MB,"
        f" {facts['hashed_files']} of them hashed now"
    )
    click.echo(f"wrote       {', '.join(facts['files'])}")
    if facts["debug"]:
        click.echo(
            "DEBUG       sgx.debug = true: anybody on the machine can read this enclave's memory;"
            " key servers refuse it"
        )
