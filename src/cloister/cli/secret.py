"""``cloister secret``: what a key server with a store releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.streams import data_input
from cloister.cli.trust import FILE, utc_now

if TYPE_CHECKING:
    from cloister.provision.store import SecretStore

_STORE = click.option("--store", required=True, metavar="DATABASE", help="Where secrets are kept.")
_STORE_KEY = click.option(
    "--store-key",
    required=True,
    metavar="SOURCE",
    help="The store's key: file:PATH, env:NAME or command:PROGRAM...",
)


@click.group()
def secret() -> None:
    """Keep the secrets that a key server releases, each with its policy.

    \b
    Example:  cloister secret new-key store.key
              cloister secret put model wrap-key --policy model.toml \\
                --store keys.db --store-key file:store.key
    """


@secret.command("new-key")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new_key(file: Path, as_json: bool) -> None:
    """Make the key of a new store in FILE: 32 random bytes that only you can read.

    \b
    Example:  cloister secret new-key store.key
    """
    import secrets

    from cloister.files import write_atomically
    from cloister.provision.store_key import KEY_SIZE

    write_atomically(file, secrets.token_bytes(KEY_SIZE), mode=0o600, replace=False)
    if as_json:
        click.echo(json.dumps({"file": str(file)}))
        return
    click.echo(f"{file}: without it nobody can open the store; keep a copy in a safe place")


@secret.command()
@click.argument("name")
@click.argument("file")
@click.option("--policy", type=FILE, required=True, help="Which enclaves may have it (TOML).")
@_STORE
@_STORE_KEY
@click.option("--hex", "as_hex", is_flag=True, help="FILE is a wrap key; send it as Graphene did.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def put(
    name: str, file: str, policy: Path, store: str, store_key: str, as_hex: bool, as_json: bool
) -> None:
    """Store the bytes of FILE (`-`: standard input) under NAME, in place of older ones.

    Exactly these bytes are sent to an enclave that the policy accepts: 16 for a wrap key; text
    for SECRET_PROVISION_SECRET_STRING must end with a NUL byte. Running servers notice within a
    second. No two policies may accept the same enclave.

    \b
    Example:  cloister secret put model wrap-key --policy model.toml \\
                --store keys.db --store-key file:store.key
    """
    from cloister.attestation.policy_file import parse_policy
    from cloister.encrypted.keys import read_wrap_key
    from cloister.provision.protocol import MAX_SECRET_SIZE
    from cloister.provision.store_key import load_store_key

    if as_hex:
        value = read_wrap_key(file).hex().encode() + b"\0"
    elif file == "-":
        value = data_input().read(MAX_SECRET_SIZE + 1)
    else:
        value = _content(Path(file), MAX_SECRET_SIZE + 1)
    key = load_store_key(store_key)
    terms = policy.read_bytes()
    parse_policy(terms, str(policy))  # says with its name what is wrong
    database = _open(store, existing=False)
    database.put(name, value, terms.decode(), key=key, now=utc_now())
    if as_json:
        click.echo(json.dumps({"name": name, "bytes": len(value)}))
    else:
        click.echo(f"{name}: {len(value)} bytes stored")


def _content(path: Path, most: int) -> bytes:
    from cloister.errors import InputError

    try:
        with path.open("rb") as stream:
            return stream.read(most)
    except OSError as error:
        # Not a word of what may have been meant to be the secret itself.
        raise InputError(
            f"FILE: {error.strerror}",
            hint="name the file that holds the secret, or - for standard input",
        ) from error


@secret.command("list")
@_STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(store: str, as_json: bool) -> None:
    """List names and policies; the secrets themselves are never shown.

    \b
    Example:  cloister secret list --store keys.db
    """
    from cloister.attestation.policy_file import parse_policy

    listed = [
        {
            "name": item.name,
            "updated": item.updated,
            "accepts": parse_policy(item.policy).describe(),
        }
        for item in _open(store).listed()
    ]
    if as_json:
        click.echo(json.dumps(listed))
        return
    for item in listed:
        click.echo(f"{item['name']} (since {item['updated']}): {item['accepts']}")


@secret.command()
@click.argument("name")
@_STORE
@_STORE_KEY
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove(name: str, store: str, store_key: str, as_json: bool) -> None:
    """Remove NAME; running servers stop releasing it within a second.

    \b
    Example:  cloister secret remove model --store keys.db --store-key file:store.key
    """
    from cloister.provision.store_key import load_store_key

    _open(store).remove(name, key=load_store_key(store_key))
    if as_json:
        click.echo(json.dumps({"name": name, "removed": True}))
    else:
        click.echo(f"{name}: removed")


def _open(database: str, *, existing: bool = True) -> SecretStore:
    from cloister.provision.database import open_database
    from cloister.provision.store import SecretStore
    from cloister.provision.tables import SECRETS, SECRETS_CHANGES

    tables = [SECRETS, SECRETS_CHANGES] if existing else []
    return SecretStore(open_database(database, existing=tables))
