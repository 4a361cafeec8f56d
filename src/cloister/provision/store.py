"""Stored secrets: each with its name and its policy, sealed under the store key.

A secret is sealed together with its name and policy: whoever can write to the database cannot
give a secret another policy without the key. Each change raises a generation number, by which
running servers notice it.
"""

from __future__ import annotations

import dataclasses
import datetime
import re

import sqlalchemy as sa

from cloister.attestation.policy_file import parse_policy
from cloister.errors import InputError, StoreError, StoreKeyError
from cloister.provision.database import reading, utc, writing
from cloister.provision.decision import Secret
from cloister.provision.protocol import MAX_SECRET_SIZE
from cloister.provision.store_key import StoreKey
from cloister.provision.tables import GENERATION, SECRETS

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclasses.dataclass(frozen=True)
class StoredSecret:
    """What may be shown of a stored secret."""

    name: str
    policy: str
    updated: str


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
            connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            connection.execute(sa.insert(SECRETS).values(row))
            _next_generation(connection)

    def remove(self, name: str) -> None:
        """Remove a secret.

        Raises:
            InputError: there is none of that name.
        """
        with writing(self._engine, SECRETS) as connection:
            removed = connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            if removed.rowcount == 0:
                raise InputError(f"secret {name}: there is none of that name")
            _next_generation(connection)

    def listed(self) -> list[StoredSecret]:
        """Return what may be shown of every secret, by name."""
        columns = (SECRETS.c.name, SECRETS.c.policy, SECRETS.c.updated)
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(*columns).order_by(SECRETS.c.name)).all()
        return [StoredSecret(*row) for row in rows]

    def generation(self) -> int:
        """Return a number that grows with each change."""
        with reading(self._engine) as connection:
            return _generation(connection)

    def load(self, key: StoreKey) -> tuple[int, list[Secret]]:
        """Return the generation and all secrets, opened.

        Raises:
            StoreKeyError: one of them was sealed under another key, or was changed.
            StoreError: the database cannot be read.
        """
        with reading(self._engine) as connection:
            number = _generation(connection)
            rows = connection.execute(sa.select(SECRETS).order_by(SECRETS.c.name)).all()
        return number, [_opened(row, key) for row in rows]


def _opened(row: sa.Row[tuple[str, str, bytes, str]], key: StoreKey) -> Secret:
    # SQLite keeps any type in any column, so that a changed row may hold anything.
    if not (isinstance(row.policy, str) and isinstance(row.sealed, bytes)):
        raise StoreKeyError("stored secret: its row was changed")
    value = key.open(row.sealed, _context(str(row.name), row.policy))
    return Secret(str(row.name), value, parse_policy(row.policy))


def _context(name: str, policy: str) -> bytes:
    # The name cannot contain the separator, so that the two parts cannot be confused.
    return b"cloister secret 1\0" + name.encode() + b"\0" + policy.encode()


def _generation(connection: sa.Connection) -> int:
    return connection.execute(sa.select(GENERATION.c.number)).scalar() or 0


def _next_generation(connection: sa.Connection) -> None:
    number = sa.update(GENERATION).values(number=GENERATION.c.number + 1)
    if connection.execute(number).rowcount == 0:
        connection.execute(sa.insert(GENERATION).values(id=1, number=1))
    if _generation(connection) < 1:
        raise StoreError("database: the generation number is damaged")
