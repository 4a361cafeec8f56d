"""The key server's database: SQLite in a file, or PostgreSQL that several servers share.

Every write is one transaction that is on the disk when it returns. On SQLite a writing
transaction takes the lock at its beginning, so that two processes never find out too late.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from cloister.errors import InputError, StoreError
from cloister.provision.tables import METADATA

BUSY_SECONDS = 30
_READ_ONLY = "cloister_read_only"


def open_database(url: str) -> sa.Engine:
    """Open a database, and make its tables if they are missing.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER@HOST/NAME``, or a plain file name.

    Raises:
        InputError: the address is malformed, or of a kind that is not supported.
        StoreError: the database cannot be reached.
    """
    try:
        parsed = sa.make_url(url if "://" in url else f"sqlite:///{url}")
    except sa.exc.ArgumentError as error:
        raise InputError(f"database {url!r}: not an address of a database") from error
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise InputError(f"database: {kind} is not supported; there are sqlite and postgresql")
    if kind == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(
            f"database {url!r}: names no file, and what is only in memory would be lost",
            hint="sqlite:///FILE, or just FILE",
        )
    if kind == "postgresql" and parsed.get_driver_name() != "psycopg":
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=kind != "sqlite")
    except ModuleNotFoundError as error:
        raise InputError(
            "database: PostgreSQL needs the package psycopg",
            hint="pip install 'cloister[postgresql]'",
        ) from error
    if kind == "sqlite":
        _prepare_sqlite(engine)
    _make_tables(engine)
    return engine


def _make_tables(engine: sa.Engine) -> None:
    try:
        METADATA.create_all(engine)
    except sa.exc.DBAPIError:
        # Another process may have made them between our look and our attempt; look again.
        with failures_are_ours():
            METADATA.create_all(engine)


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself; see `begin` below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def failures_are_ours() -> Iterator[None]:
    """Turn the library's exceptions into ours; their texts name no data."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        words = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise StoreError(
            f"database: {words}", hint="does it exist, is it reachable, may you write to it?"
        ) from error


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Read in one transaction, without keeping writers out."""
    with failures_are_ours(), engine.connect() as connection:
        shown = connection.execution_options(**{_READ_ONLY: True})
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
            connection.exec_driver_sql(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE")
        yield connection


def utc(time: datetime.datetime) -> str:
    """Return a time as it is stored: ISO 8601 in UTC with microseconds."""
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
