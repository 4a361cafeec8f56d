"""Stored secrets, on SQLite and on PostgreSQL."""

from __future__ import annotations

import datetime
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cloister.attestation.policy import Policy
from cloister.attestation.policy_file import parse_policy
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import CloisterError, InputError, PolicyError, StoreError, StoreKeyError
from cloister.provision import store as store_module
from cloister.provision.database import open_database
from cloister.provision.decision import ClientJudge
from cloister.provision.store import Head, SecretStore
from cloister.provision.store_key import LocalStoreKey
from cloister.provision.store_watcher import StoreWatcher
from cloister.provision.tables import AUDIT, SECRETS, SECRETS_CHANGES

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
    secrets = store.load(KEY).secrets
    assert [(secret.name, bytes(secret.value)) for secret in secrets] == [
        ("a", b"text\0"),
        ("b", b"\0\xff" * 8),
    ]
    assert "1" * 64 in secrets[1].policy.describe()


def test_the_latest_counts_and_each_change_is_noticed(store: SecretStore) -> None:
    numbers = [store.head()]
    for value in (b"one", b"two"):
        put(store, "a", value)
        numbers.append(store.head())
    assert [bytes(secret.value) for secret in store.load(KEY).secrets] == [b"two"]
    store.remove("a", key=KEY)
    numbers.append(store.head())
    assert store.load(KEY).secrets == []
    assert numbers == sorted(set(numbers))


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


def test_a_key_of_another_store_changes_nothing(store: SecretStore) -> None:
    put(store, "a", b"secret")
    other = LocalStoreKey(bytes(32))
    with pytest.raises(StoreKeyError, match="another key"):
        store.put("b", b"secret", policy("1"), key=other, now=NOW)
    with pytest.raises(StoreKeyError, match="another key"):
        store.remove("a", key=other)
    assert [secret.name for secret in store.load(KEY).secrets] == ["a"]


Rows = list[dict[str, Any]]


def table(engine: sa.Engine, name: str) -> Rows:
    with engine.connect() as connection:
        rows = connection.execute(sa.text(f"SELECT * FROM {name}")).mappings()
        return [dict(row) for row in rows]


def put_back(engine: sa.Engine, table: sa.Table, rows: Rows) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(table))
        connection.execute(sa.insert(table), rows)


def test_an_older_secret_cannot_be_put_back(store: SecretStore, engine: sa.Engine) -> None:
    """Whoever can write to the database kept the row: it is sealed with its own, older policy."""
    put(store, "a", b"secret")
    old = table(engine, "secrets")
    put(store, "a", b"secret", "1")
    put_back(engine, SECRETS, old)
    with pytest.raises(StoreKeyError, match="changed without it"):
        store.load(KEY)
    with pytest.raises(StoreKeyError):
        put(store, "b", b"another")  # which would seal what was put back


def test_a_removed_secret_cannot_be_put_back(store: SecretStore, engine: sa.Engine) -> None:
    put(store, "a", b"secret")
    put(store, "b", b"secret", "1")
    old = table(engine, "secrets")
    store.remove("b", key=KEY)
    put_back(engine, SECRETS, old)
    with pytest.raises(StoreKeyError):
        store.load(KEY)


@pytest.mark.parametrize(
    "change",
    ["SET number = number + 5 WHERE number = 2", "SET seal = ''", "SET content = ''",
     "SET number = 9 WHERE number = 1"],
)  # fmt: skip
def test_the_list_cannot_be_called_newer_or_older(
    store: SecretStore, engine: sa.Engine, change: str
) -> None:
    put(store, "a", b"secret")
    put(store, "b", b"secret", "1")
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE secrets_changes {change}"))
    with pytest.raises(StoreKeyError):
        store.load(KEY)


def test_without_its_seal_a_list_counts_for_nothing(store: SecretStore, engine: sa.Engine) -> None:
    put(store, "a", b"secret")
    with engine.begin() as connection:
        connection.execute(sa.delete(SECRETS_CHANGES))
    with pytest.raises(StoreKeyError):
        store.load(KEY)
    with pytest.raises(StoreKeyError):
        put(store, "b", b"another")


State = tuple[Rows, Rows]


def state(engine: sa.Engine) -> State:
    return table(engine, "secrets"), table(engine, "secrets_changes")


def restore(engine: sa.Engine, kept: State) -> None:
    put_back(engine, SECRETS, kept[0])
    put_back(engine, SECRETS_CHANGES, kept[1])


class Watched:
    """A server's view of a store."""

    def __init__(self, store: SecretStore) -> None:
        self.told: list[CloisterError] = []
        self.judge = ClientJudge((), Authenticator(Trust(), lambda: NOW))
        self.watcher = StoreWatcher(store, KEY, self.judge, self.told.append, keep_seconds=60)

    def released(self) -> list[str]:
        self.watcher.poll()
        return [secret.name for secret in self.judge.secrets]


def test_a_whole_older_list_is_refused_by_who_saw_a_newer_one(
    store: SecretStore, engine: sa.Engine
) -> None:
    server = Watched(store)
    put(store, "a", b"secret")
    old = state(engine)
    put(store, "a", b"secret", "1")
    assert server.released() == ["a"]
    new = state(engine)
    restore(engine, old)
    for _ in range(3):
        assert server.released() == []
    assert [error.message for error in server.told] == [server.watcher.problem]
    assert "change 2, which this server has seen, is not in it" in str(server.watcher.problem)
    restore(engine, new)
    assert server.released() == ["a"]
    assert server.watcher.problem is None


def test_the_owners_next_change_does_not_make_an_older_list_good(
    store: SecretStore, engine: sa.Engine
) -> None:
    server = Watched(store)
    put(store, "a", b"secret")
    put(store, "x", b"secret", "1")
    old = state(engine)
    store.remove("x", key=KEY)
    assert server.released() == ["a"]
    restore(engine, old)
    assert server.released() == []
    for number in range(2, 5):  # by number, the list is as new as the one that was seen, and newer
        put(store, "b", b"secret", str(number))
        assert server.released() == []
    assert "change 3" in str(server.watcher.problem)


def test_another_change_of_the_same_number_is_another_one(
    store: SecretStore, engine: sa.Engine
) -> None:
    """Put back just before the owner removes something, so that no number is missing."""
    server = Watched(store)
    put(store, "a", b"secret")
    put(store, "b", b"secret", "1")
    old = state(engine)
    put(store, "c", b"secret", "2")
    assert server.released() == ["a", "b", "c"]
    restore(engine, old)
    store.remove("a", key=KEY)
    assert server.released() == []


def test_many_changes_at_once_are_followed(store: SecretStore) -> None:
    server = Watched(store)
    put(store, "a", b"secret")
    assert server.released() == ["a"]
    for number in range(1, 6):
        put(store, f"s{number}", b"secret", str(number))
    store.remove("a", key=KEY)
    assert server.released() == [f"s{number}" for number in range(1, 6)]


def test_a_reader_sees_one_state_whoever_writes_meanwhile(
    store: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows of before and the seal of after would look like tampering."""
    put(store, "a", b"secret")
    wait = threading.Event()
    written = threading.Event()

    def write() -> None:
        wait.wait(10)
        put(store, "b", b"secret", "1")
        written.set()

    def slow(connection: sa.Connection) -> Head:
        if threading.current_thread() is threading.main_thread():
            wait.set()
            assert written.wait(10)
        return genuine(connection)

    genuine = store_module._head
    monkeypatch.setattr(store_module, "_head", slow)
    writer = threading.Thread(target=write)
    writer.start()
    assert [secret.name for secret in store.load(KEY).secrets] == ["a"]
    writer.join()
    assert [secret.name for secret in store.load(KEY).secrets] == ["a", "b"]


def test_a_policy_that_is_not_understood_withholds_its_secret_alone(
    store: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a newer version wrote, say."""
    put(store, "new", b"secret")
    put(store, "old", b"secret", "1")

    def parse(text: str) -> Policy:
        if "1111" in text:
            return parse_policy(text)
        raise PolicyError("policy: version 9")

    server = Watched(store)
    monkeypatch.setattr("cloister.provision.store.parse_policy", parse)
    assert server.released() == ["old"]
    assert server.watcher.problem == "stored secret new: policy: version 9"
    store.remove("old", key=KEY)
    assert server.released() == []
    assert len(server.told) == 1


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "a\0", "ä", "\udcff"])
def test_impossible_names(store: SecretStore, name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        put(store, name, b"secret")
    with pytest.raises(InputError, match="not a name"):
        store.remove(name, key=KEY)


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
        store.remove("a", key=KEY)


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


def test_a_database_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such database") as caught:
        open_database(str(tmp_path / "typo.db"), existing=[AUDIT])
    assert "cloister secret put" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
    sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}").connect().exec_driver_sql(
        "CREATE TABLE t (i)"
    )
    with pytest.raises(InputError, match="not a key server's"):
        open_database(str(tmp_path / "other.db"), existing=[AUDIT])
    open_database(str(tmp_path / "made.db"))
    open_database(str(tmp_path / "made.db"), existing=[AUDIT])
    assert (tmp_path / "made.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["postgresql://u:sekrit@h:abc/db", "foo bar://u:sekrit@h/db"])
def test_a_malformed_address_is_not_repeated(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_database(url)
    assert "sekrit" not in str(caught.value)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db")
    open_database(name)
    assert Path(name).exists()


def test_an_address_of_sqlite_takes_no_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no options"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}?uri=true")
    assert list(tmp_path.iterdir()) == []


def test_an_older_audit_log_gets_the_newer_trigger(tmp_path: Path) -> None:
    name = str(tmp_path / "keys.db")
    with open_database(name).begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_only_behind_the_last")
        connection.exec_driver_sql("DROP TABLE secrets_changes")
    open_database(name, existing=[AUDIT])  # which needs no other table
    with (
        pytest.raises(sa.exc.DBAPIError, match="append-only"),
        open_database(name).begin() as connection,
    ):
        connection.exec_driver_sql("INSERT INTO audit VALUES (7, '', '', NULL)")


def test_any_driver_of_sqlite_is_sqlite(tmp_path: Path) -> None:
    open_database(f"sqlite+aiosqlite:///{tmp_path / 'keys.db'}")
    assert (tmp_path / "keys.db").exists()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("not a database at all, but long enough to be looked at")
    with pytest.raises(StoreError):
        open_database(str(tmp_path / "keys.db"))
