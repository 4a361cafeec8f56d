"""Stored secrets, on SQLite and on PostgreSQL."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloister.errors import CloisterError, InputError, StoreError, StoreKeyError
from cloister.provision.database import open_database
from cloister.provision.store import SecretStore
from cloister.provision.store_key import LocalStoreKey

KEY = LocalStoreKey(bytes(range(32)))
NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.timezone.utc)


def policy(digit: str = "0") -> str:
    return f'version = 1\nmrenclave = "{digit * 64}"\n'


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    return open_database(database_url)


@pytest.fixture
def store(engine: sa.Engine) -> SecretStore:
    return SecretStore(engine)


def put(store: SecretStore, name: str, value: bytes, digit: str = "0") -> None:
    store.put(name, value, policy(digit), key=KEY, now=NOW)


def test_what_is_put_is_loaded(store: SecretStore) -> None:
    put(store, "b", b"\0\xff" * 8, "1")
    put(store, "a", b"text\0")
    _, secrets = store.load(KEY)
    assert [(secret.name, bytes(secret.value)) for secret in secrets] == [
        ("a", b"text\0"),
        ("b", b"\0\xff" * 8),
    ]
    assert "1" * 64 in secrets[1].policy.describe()


def test_the_latest_counts_and_each_change_is_noticed(store: SecretStore) -> None:
    generations = [store.generation()]
    for value in (b"one", b"two"):
        put(store, "a", value)
        generations.append(store.generation())
    assert [bytes(secret.value) for secret in store.load(KEY)[1]] == [b"two"]
    store.remove("a")
    generations.append(store.generation())
    assert store.load(KEY)[1] == []
    assert generations == sorted(set(generations))


def test_the_secret_is_not_in_the_database(store: SecretStore, engine: sa.Engine) -> None:
    put(store, "a", b"a very secret text")
    with engine.connect() as connection:
        (row,) = connection.execute(sa.text("SELECT * FROM secrets")).all()
    assert b"very secret" not in bytes(row.sealed)


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE secrets SET policy = '{policy('f')}'",
        "UPDATE secrets SET name = 'b'",
        "UPDATE secrets SET sealed = ''",
    ],
)
def test_a_secret_with_another_policy_or_name_is_refused(
    store: SecretStore, engine: sa.Engine, change: str
) -> None:
    put(store, "a", b"secret")
    with engine.begin() as connection:
        connection.execute(sa.text(change.replace(":", r"\:")))
    with pytest.raises(StoreKeyError, match="changed"):
        store.load(KEY)


def test_secrets_of_one_store_cannot_be_exchanged(store: SecretStore, engine: sa.Engine) -> None:
    put(store, "a", b"for a")
    put(store, "b", b"for b", "1")
    with engine.begin() as connection:
        sealed = connection.execute(sa.text("SELECT sealed FROM secrets WHERE name = 'b'")).scalar()
        connection.execute(
            sa.text("UPDATE secrets SET sealed = :s WHERE name = 'a'"), {"s": sealed}
        )
    with pytest.raises(StoreKeyError):
        store.load(KEY)


def test_another_key_opens_nothing(store: SecretStore) -> None:
    put(store, "a", b"secret")
    with pytest.raises(StoreKeyError):
        store.load(LocalStoreKey(bytes(32)))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "a\0", "ä"])
def test_impossible_names(store: SecretStore, name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        put(store, name, b"secret")


@pytest.mark.parametrize("value", [b"", bytes(2_000_000)])
def test_impossible_values(store: SecretStore, value: bytes) -> None:
    with pytest.raises(InputError, match="expected 1 to"):
        put(store, "a", value)


@pytest.mark.parametrize("text", ["", "version = 1", "nonsense"])
def test_impossible_policies_are_not_stored(store: SecretStore, text: str) -> None:
    with pytest.raises(InputError):
        store.put("a", b"secret", text, key=KEY, now=NOW)
    assert store.listed() == []


def test_what_is_listed(store: SecretStore) -> None:
    put(store, "a", b"secret")
    (item,) = store.listed()
    assert (item.name, item.policy) == ("a", policy())
    assert item.updated.startswith("2026-05-01T00:00:00")


def test_removing_what_is_not_there(store: SecretStore) -> None:
    with pytest.raises(InputError, match="none of that name"):
        store.remove("a")


def test_two_that_open_at_once_make_the_tables_once(database_url: str) -> None:
    failures: list[CloisterError] = []

    def open_it() -> None:
        try:
            open_database(database_url)
        except CloisterError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_plain_file_name_is_sqlite(tmp_path: Path) -> None:
    open_database(str(tmp_path / "keys.db"))
    assert (tmp_path / "keys.db").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "://", "oracle://x", "sqlite://", "sqlite:///:memory:"]
)
def test_other_databases(url: str) -> None:
    with pytest.raises(InputError):
        open_database(url)


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/directory/x.db", "postgresql://x@127.0.0.1:1/y"]
)
def test_a_database_that_is_away_is_told(url: str) -> None:
    with pytest.raises(StoreError, match="database") as caught:
        open_database(url)
    assert caught.value.hint


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("not a database at all, but long enough to be looked at")
    with pytest.raises(StoreError):
        open_database(str(tmp_path / "keys.db"))
