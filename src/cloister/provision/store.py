"""Stored secrets: each with its name and its policy, sealed under the store key.

Two seals keep whoever can write to the database, and has no key, from changing what is released.
A secret is sealed together with its name and policy, so that it cannot be given another policy.
And each change seals the whole list, with a number that grows and with the seal before, so that an
older secret cannot be put back beside newer ones, nor a removed one. A running server remembers the
last change that it saw and takes no list that did not come from it. Only a whole older list that is
put back while no server runs is not noticed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from cloister.attestation.policy_file import parse_policy
from cloister.errors import CloisterError, InputError, StoreKeyError
from cloister.provision.database import reading, utc, writing
from cloister.provision.decision import Secret
from cloister.provision.protocol import MAX_SECRET_SIZE
from cloister.provision.store_key import StoreKey
from cloister.provision.tables import SECRETS, SECRETS_CHANGES

_CHANGE = SECRETS_CHANGES.c
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclasses.dataclass(frozen=True)
class StoredSecret:
    """What may be shown of a stored secret."""

    name: str
    policy: str
    updated: str


class Head(NamedTuple):
    """The last change: its number (0: none yet) and its seal."""

    number: int = 0
    seal: str = ""


NO_CHANGE = Head()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The secrets as they were at one time.

    Attributes:
        head: the last change.
        secrets: those that can be released, opened.
        failures: why others cannot, such as a policy that this version does not understand.
    """

    head: Head
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
        _require_name(name)
        if not 0 < len(value) <= MAX_SECRET_SIZE:
            raise InputError(f"secret {name}: {len(value)} bytes, expected 1 to {MAX_SECRET_SIZE}")
        parse_policy(policy)
        sealed = key.seal(value, _context(name, policy))
        row = {"name": name, "policy": policy, "sealed": sealed, "updated": utc(now)}
        with writing(self._engine, SECRETS) as connection:
            head, _ = _listed(connection, key)
            connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            connection.execute(sa.insert(SECRETS).values(row))
            _seal_list(connection, key, head)

    def remove(self, name: str, *, key: StoreKey) -> None:
        """Remove a secret.

        Raises:
            InputError: there is none of that name.
            StoreKeyError: the store belongs to another key, or was changed without it.
        """
        _require_name(name)
        with writing(self._engine, SECRETS) as connection:
            head, _ = _listed(connection, key)
            removed = connection.execute(sa.delete(SECRETS).where(SECRETS.c.name == name))
            if removed.rowcount == 0:
                raise InputError(f"secret {name}: there is none of that name")
            _seal_list(connection, key, head)

    def listed(self) -> list[StoredSecret]:
        """Return what may be shown of every secret, by name."""
        columns = (SECRETS.c.name, SECRETS.c.policy, SECRETS.c.updated)
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(*columns).order_by(SECRETS.c.name)).all()
        return [StoredSecret(*row) for row in rows]

    def head(self) -> Head:
        """Return the last change, to see whether there was one; nothing vouches for it yet."""
        with reading(self._engine) as connection:
            return _head(connection)

    def load(self, key: StoreKey, since: Head = NO_CHANGE) -> Loaded:
        """Return all secrets, opened.

        Args:
            key: opens them.
            since: the last change that was seen; what is loaded must have come from it.

        Raises:
            StoreKeyError: the store belongs to another key, was changed without it, or an older
                list was put in its place since.
            StoreError: the database cannot be read.
        """
        with reading(self._engine) as connection:
            head, rows = _listed(connection, key)
            _require_descent(connection, key, since, head)
        secrets, failures = [], list[CloisterError]()
        for row in rows:
            try:
                secrets.append(_opened(row, key))
            except CloisterError as error:
                why = f"stored secret {row.name}: {error.message}"
                failures.append(type(error)(why, hint=error.hint))
        return Loaded(head, secrets, failures)


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"secret {name!r}: not a name (letters, digits, _, . and -)")


Row = sa.Row[tuple[str, str, bytes, str]]


def _opened(row: Row, key: StoreKey) -> Secret:
    policy = parse_policy(row.policy)
    return Secret(row.name, key.open(row.sealed, _context(row.name, row.policy)), policy)


def _context(name: str, policy: str) -> bytes:
    # The name cannot contain the separator, so that the two parts cannot be confused.
    return b"cloister secret 1\0" + name.encode() + b"\0" + policy.encode()


def _head(connection: sa.Connection) -> Head:
    last = sa.select(_CHANGE.number, _CHANGE.seal).order_by(_CHANGE.number.desc()).limit(1)
    found = connection.execute(last).first()
    return Head() if found is None else Head(int(found.number), str(found.seal))


def _listed(connection: sa.Connection, key: StoreKey) -> tuple[Head, Sequence[Row]]:
    """Return the last change and all rows, after its seal was checked."""
    rows = connection.execute(sa.select(SECRETS).order_by(SECRETS.c.name)).all()
    head = _head(connection)
    if not head.number and not rows:
        return head, rows
    if head.number and _is_sealed(connection, key, head.number, _content(rows)):
        return head, rows
    raise StoreKeyError(
        "store: sealed under another key, or changed without it",
        hint="use the key with which its secrets were put; if it is the right one, somebody else"
        " wrote to the database, or a version before this one made it: find out, then put all"
        " secrets into a new one",
    )


def _require_descent(connection: sa.Connection, key: StoreKey, since: Head, head: Head) -> None:
    """Check that the change which was seen is still there, and each one after it follows."""
    if not since.number:
        return
    seen = sa.select(_CHANGE.seal).where(_CHANGE.number == since.number)
    is_there = connection.execute(seen).scalar() == since.seal
    later = range(since.number + 1, head.number + 1)
    if not is_there or not all(_is_sealed(connection, key, number) for number in later):
        raise StoreKeyError(
            f"store: change {since.number}, which this server has seen, is not in it any more",
            hint="somebody put an older copy in its place: find out; if it was you, restart",
        )


def _is_sealed(
    connection: sa.Connection, key: StoreKey, number: int, content: str | None = None
) -> bool:
    """Tell whether a change is sealed, and is of this content if that is known."""
    wanted = sa.select(SECRETS_CHANGES).where(_CHANGE.number.in_((number - 1, number)))
    found = {row.number: row for row in connection.execute(wanted)}
    row, before = found.get(number), found.get(number - 1)
    if row is None or (content is not None and row.content != content):
        return False
    previous = "" if before is None else str(before.seal)
    expected = _seal(key, number, str(row.content), previous)
    return hmac.compare_digest(expected.encode(), str(row.seal).encode())


def _seal_list(connection: sa.Connection, key: StoreKey, before: Head) -> None:
    rows = connection.execute(sa.select(SECRETS).order_by(SECRETS.c.name)).all()
    number, content = before.number + 1, _content(rows)
    seal = _seal(key, number, content, before.seal)
    values = {"number": number, "content": content, "seal": seal}
    connection.execute(sa.insert(SECRETS_CHANGES).values(values))


def _seal(key: StoreKey, number: int, content: str, previous: str) -> str:
    text = json.dumps(["cloister secrets 1", number, content, previous])
    return key.vouch(text.encode()).hex()


def _content(rows: Sequence[Row]) -> str:
    """Return a digest of all secrets."""
    # Types count, too: SQLite keeps any type in any column, and a changed row may hold anything.
    shown = sorted([_digest(value) for value in row] for row in rows)
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _digest(value: object) -> str:
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return f"{type(value).__name__} {hashlib.sha256(data).hexdigest()}"
