"""Stored secrets: each with its name and its policy, sealed under the store key.

Two seals keep whoever can write to the database, and has no key, from changing what is released.
A secret is sealed together with its name and policy, so that it cannot be given another policy.
And the whole list is sealed with a number that grows with each change, so that an older secret
cannot be put back beside newer ones, nor a removed one; a running server, which remembers the
number, refuses an older list as a whole. Only who puts back the whole list while no server runs is
not noticed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import json
import re
from collections.abc import Sequence

import sqlalchemy as sa

from cloister.attestation.policy_file import parse_policy
from cloister.errors import CloisterError, InputError, StoreKeyError
from cloister.provision.database import reading, utc, writing
from cloister.provision.decision import Secret
from cloister.provision.protocol import MAX_SECRET_SIZE
from cloister.provision.store_key import StoreKey
from cloister.provision.tables import SECRETS, SECRETS_INDEX

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclasses.dataclass(frozen=True)
class StoredSecret:
    """What may be shown of a stored secret."""

    name: str
    policy: str
    updated: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The secrets as they were at one time.

    Attributes:
        number: how often they had been changed.
        secrets: those that can be released, opened.
        failures: why others cannot, such as a policy that this version does not understand.
    """

    number: int
    secrets: list[Secret]
    failures: list[CloisterError]


class SecretStore:
    """The secrets in a database.

    Args:
        engine: from :func:`cloister.provision.database.open_database`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def put(
        self, name: str, value: bytes, policy: str, *, key: StoreKey, now: datetime.datetime
    ) -> None:
        """Store a secret, in place of an older one of the same name.

        Args:
            name: letters, digits, ``_``, ``.`` and ``-``, at most 64.
            value: the bytes that clients get.
            policy: which enclaves may have it, as TOML.
            key: seals it.
            now: the present time (aware).

        Raises:
            InputError: an impossible name, value or policy.
            StoreKeyError: the store belongs to another key, or was changed without it.
            StoreError: the database refused.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"secret {name!r}: not a name (letters, digits, _, . and -)")
        if not 0 < len(value) <= MAX_SECRET_SIZE:
            raise InputError(f"secret {name}: {len(value)} bytes, expected 1 to {MAX_SECRET_SIZE}")
        parse_policy(policy)
        sealed = key.seal(value, _context(name, policy))
        row = {"name": name, "policy": policy, "sealed": sealed, "updated": utc(now)}
        with writing(self._engine, SECRETS) as connection:
            number, _ = _listed(connection, key)
            connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            connection.execute(sa.insert(SECRETS).values(row))
            _seal_list(connection, key, number + 1)

    def remove(self, name: str, *, key: StoreKey) -> None:
        """Remove a secret.

        Raises:
            InputError: there is none of that name.
            StoreKeyError: the store belongs to another key, or was changed without it.
        """
        with writing(self._engine, SECRETS) as connection:
            number, _ = _listed(connection, key)
            removed = connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            if removed.rowcount == 0:
                raise InputError(f"secret {name}: there is none of that name")
            _seal_list(connection, key, number + 1)

    def listed(self) -> list[StoredSecret]:
        """Return what may be shown of every secret, by name."""
        columns = (SECRETS.c.name, SECRETS.c.policy, SECRETS.c.updated)
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(*columns).order_by(SECRETS.c.name)).all()
        return [StoredSecret(*row) for row in rows]

    def number(self) -> int:
        """Return a number that grows with each change; nothing vouches for it yet."""
        with reading(self._engine) as connection:
            return connection.execute(sa.select(SECRETS_INDEX.c.number)).scalar() or 0

    def load(self, key: StoreKey) -> Loaded:
        """Return all secrets, opened.

        Raises:
            StoreKeyError: the store belongs to another key, or was changed without it.
            StoreError: the database cannot be read.
        """
        with reading(self._engine) as connection:
            number, rows = _listed(connection, key)
        secrets, failures = [], list[CloisterError]()
        for row in rows:
            try:
                secrets.append(_opened(row, key))
            except CloisterError as error:
                why = f"stored secret {row.name}: {error.message}"
                failures.append(type(error)(why, hint=error.hint))
        return Loaded(number, secrets, failures)


Row = sa.Row[tuple[str, str, bytes, str]]


def _opened(row: Row, key: StoreKey) -> Secret:
    policy = parse_policy(row.policy)
    return Secret(row.name, key.open(row.sealed, _context(row.name, row.policy)), policy)


def _context(name: str, policy: str) -> bytes:
    # The name cannot contain the separator, so that the two parts cannot be confused.
    return b"cloister secret 1\0" + name.encode() + b"\0" + policy.encode()


def _listed(connection: sa.Connection, key: StoreKey) -> tuple[int, Sequence[Row]]:
    """Return the number of changes and all rows, after their seal was checked."""
    rows = connection.execute(sa.select(SECRETS).order_by(SECRETS.c.name)).all()
    sealed = connection.execute(sa.select(SECRETS_INDEX.c.number, SECRETS_INDEX.c.seal)).all()
    if not sealed and not rows:
        return 0, rows
    for number, seal in sealed[:1]:
        expected = _seal(key, number, rows)
        if hmac.compare_digest(expected.encode(), str(seal).encode()):
            return int(number), rows
    raise StoreKeyError(
        "store: sealed under another key, or changed without it",
        hint="use the key with which its secrets were put; if it is the right one, somebody else"
        " wrote to the database: find out, then put all secrets into a new one",
    )


def _seal_list(connection: sa.Connection, key: StoreKey, number: int) -> None:
    rows = connection.execute(sa.select(SECRETS).order_by(SECRETS.c.name)).all()
    connection.execute(sa.delete(SECRETS_INDEX))
    values = {"id": 1, "number": number, "seal": _seal(key, number, rows)}
    connection.execute(sa.insert(SECRETS_INDEX).values(values))


def _seal(key: StoreKey, number: object, rows: Sequence[Row]) -> str:
    # Types count, too: SQLite keeps any type in any column, and a changed row may hold anything.
    shown = [[_digest(value) for value in row] for row in rows]
    text = json.dumps(["cloister secrets 1", str(number), sorted(shown)])
    return key.vouch(text.encode()).hex()


def _digest(value: object) -> str:
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return f"{type(value).__name__} {hashlib.sha256(data).hexdigest()}"
