"""The key server's database: SQLite in a file, or PostgreSQL that several servers share.

Every write is one transaction that is on the disk when it returns. On SQLite a writing
transaction takes the lock at its beginning, so that two processes never find out too late.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cloister.errors import InputError, StoreError
from cloister.provision.tables import METADATA

BUSY_SECONDS = 30
_UNREACHABLE = "does it exist, is it reachable, may you write to it?"
_MAKING = "cloister secret put makes a store of secrets, cloister serve --audit an audit log"
_READ_ONLY = "cloister_read_only"


def open_database(url: str, *, existing: Sequence[sa.Table] = ()) -> sa.Engine:
    """Open a database.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER@HOST/NAME``, or a plain file name.
        existing: tables that must be there; without any, what is missing is made.

    Raises:
        InputError: the address is malformed, or of a kind that is not supported; or there is
            none, and it must exist.
        StoreError: the database cannot be reached.
    """
    try:
        parsed = sa.make_url(url if "://" in url else f"sqlite:///{url}")
    except (sa.exc.ArgumentError, ValueError) as error:
        # Not a word of it: it may have a password in it.
        raise InputError(
            "database: not an address of a database",
            hint="sqlite:///FILE, postgresql://USER@HOST/NAME, or just FILE",
        ) from error
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        engine = _sqlite(parsed, existing=bool(existing))
    elif kind == "postgresql":
        engine = _postgresql(parsed)
    else:
        raise InputError(f"database: {kind} is not supported; there are sqlite and postgresql")
    if existing:
        _require_tables(engine, existing)
    else:
        _make_tables(engine)
    return engine


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        return sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise InputError(
            "database: PostgreSQL needs the package psycopg",
            hint="pip install 'cloister[postgresql]'",
        ) from error


def _sqlite(url: sa.URL, *, existing: bool) -> sa.Engine:
    if url.database in (None, "", ":memory:"):
        raise InputError(
            "database: the address names no file, and what is only in memory would be lost",
            hint="sqlite:///FILE, or just FILE",
        )
    if url.query:
        raise InputError("database: an address of SQLite takes no options", hint="just FILE")
    path = Path(str(url.database)).absolute()
    if existing and not path.exists():
        raise InputError(f"{path}: there is no such database", hint=_MAKING)
    try:
        # Only its owner reads it, and no later connection makes it anew where it was taken away.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"database {path}: {error.strerror}", hint=_UNREACHABLE) from error

    def connect() -> sqlite3.Connection:
        address = f"file:{urllib.parse.quote(os.fsencode(path))}?mode=rw"
        return sqlite3.connect(address, uri=True, check_same_thread=False)

    engine = sa.create_engine(url.set(drivername="sqlite"), creator=connect)
    _prepare_sqlite(engine, path)
    return engine


def _require_tables(engine: sa.Engine, tables: Sequence[sa.Table]) -> None:
    with failures_are_ours():
        there = set(sa.inspect(engine).get_table_names())
    if not {table.name for table in tables} <= there:
        raise InputError(
            "database: it is not a key server's, or of a version before this one", hint=_MAKING
        )


def _make_tables(engine: sa.Engine) -> None:
    try:
        METADATA.create_all(engine)
    except sa.exc.DBAPIError:
        # Another process may have made them between our look and our attempt; look again.
        with failures_are_ours():
            METADATA.create_all(engine)


def _prepare_sqlite(engine: sa.Engine, path: Path) -> None:
    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)
        # The driver must not begin transactions by itself; see `begin` below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        cursor.close()

    @sa.event.listens_for(engine, "checkout")
    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        # Who goes on with a file that has lost its name, or given it to another one, writes where
        # nobody reads. The next connection is to what is there now, and its readers notice.
        if record.info.get("file") != _identity(path):
            raise sa.exc.DisconnectionError

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def failures_are_ours() -> Iterator[None]:
    """Turn the library's exceptions into ours; their texts name no data."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        words = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise StoreError(f"database: {words}", hint=_UNREACHABLE) from error


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Read in one transaction, without keeping writers out."""
    options: dict[str, Any] = {_READ_ONLY: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"  # one state, whoever writes meanwhile
    with failures_are_ours(), engine.connect() as connection:
        shown = connection.execution_options(**options)
        with shown.begin():
            yield shown


@contextlib.contextmanager
def writing(engine: sa.Engine, table: sa.Table) -> Iterator[sa.Connection]:
    """Write in one transaction, on the disk or not at all; nobody else writes ``table`` meanwhile.

    SQLite locks the whole database when the transaction begins.
    """
    with failures_are_ours(), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
            connection.exec_driver_sql(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE")
        yield connection


def utc(time: datetime.datetime) -> str:
    """Return a time as it is stored: ISO 8601 in UTC with microseconds."""
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
