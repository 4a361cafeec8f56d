"""The audit log, on SQLite and on PostgreSQL: nothing changes unnoticed, nothing is lost."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cloister.errors import AuditError, CloisterError, StoreError
from cloister.provision.audit import GENESIS, AuditLog, AuditRecord
from cloister.provision.database import open_database
from cloister.provision.decision import Decision, Outcome
from cloister.provision.service import Recorder
from cloister.provision.store_key import LocalStoreKey

KEY = LocalStoreKey(bytes(range(32)))
NOW = datetime.datetime(2026, 5, 1, 12, 30, tzinfo=datetime.timezone.utc)


def decision(number: int = 0, **fields: Any) -> Decision:
    values: dict[str, Any] = {
        "time": NOW,
        "peer": f"192.0.2.1:{number}",
        "outcome": Outcome.RELEASED,
        "secret": "default",
        "reason": "every check passed",
    }
    return Decision(**(values | fields))


class Silent:
    """Shows nothing to anybody."""

    def started(self, host: str, port: int, admin: tuple[str, int] | None) -> None: ...

    def decided(self, decision: Decision, record: AuditRecord | None) -> None: ...

    def failed(self, error: CloisterError) -> None: ...

    def stopped(self, releases: int) -> None: ...


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    return open_database(database_url)


@pytest.fixture
def log(engine: sa.Engine) -> AuditLog:
    return AuditLog(engine, KEY)


def test_an_empty_log_is_whole(log: AuditLog) -> None:
    summary = log.verify()
    assert (summary.records, summary.head, summary.sealed) == (0, GENESIS, 0)


def test_what_is_recorded_is_read_in_order(log: AuditLog) -> None:
    log.append([decision(1), decision(2)])
    log.append([decision(3, outcome=Outcome.REFUSED, secret=None, reason="MRENCLAVE: x")])
    records = list(log.records())
    assert [record.sequence for record in records] == [1, 2, 3]
    assert [record.decision["peer"] for record in records] == [
        "192.0.2.1:1",
        "192.0.2.1:2",
        "192.0.2.1:3",
    ]
    assert records[2].decision["outcome"] == "refused"
    assert records[0].decision["time"] == "2026-05-01T12:30:00.000000+00:00"
    assert [record.sequence for record in log.records(after=2)] == [3]


def test_the_chain_can_be_computed_by_anyone(log: AuditLog) -> None:
    log.append([decision(number) for number in range(5)])
    head = hashlib.sha256(b"cloister audit log 1").digest()
    for record in log.records():
        head = hashlib.sha256(head + record.record.encode()).digest()
        assert record.hash == head.hex()
        text = json.dumps(record.decision, sort_keys=True, separators=(",", ":"))
        assert record.record == text
    summary = log.verify()
    assert (summary.records, summary.head, summary.sealed) == (5, head.hex(), 5)


def tamper(engine: sa.Engine, *statements: str) -> None:
    """Change the log as someone would who owns the database, and first removes the guard."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            for event in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER audit_no_{event}")
        else:
            connection.exec_driver_sql("DROP TRIGGER audit_append_only ON audit")
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET record = replace(record, '192.0.2.1', '192.0.2.2') WHERE sequence = 2",
        f"UPDATE audit SET hash = '{'0' * 64}' WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 1",
        "UPDATE audit SET record = '' WHERE sequence = 2",
        "UPDATE audit SET record = '[]' WHERE sequence = 2",
        "UPDATE audit SET record = record || ' ' WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 2",
        "UPDATE audit SET sequence = 9 WHERE sequence = 3",
        "UPDATE audit SET seal = NULL WHERE sequence = 2",
        f"UPDATE audit SET seal = '{'0' * 64}' WHERE sequence = 2",
    ],
)
def test_a_change_is_noticed(log: AuditLog, engine: sa.Engine, statement: str) -> None:
    log.append([decision(number) for number in range(3)])
    tamper(engine, statement)
    with pytest.raises(AuditError):
        log.verify()


def test_a_new_chain_needs_the_key(log: AuditLog, engine: sa.Engine) -> None:
    log.append([decision(number) for number in range(3)])
    tamper(engine, "DELETE FROM audit")
    AuditLog(engine, LocalStoreKey(bytes(32))).append([decision(7)])
    assert AuditLog(engine, None).verify().records == 1
    with pytest.raises(AuditError, match="store key"):
        log.verify()


def test_a_cut_is_noticed_by_whoever_knows_a_later_hash(log: AuditLog, engine: sa.Engine) -> None:
    log.append([decision(number) for number in range(3)])
    known = log.verify().head
    assert log.verify(known=known).records == 3
    log.append([decision(4)])
    assert log.verify(known=known).records == 4
    tamper(engine, "DELETE FROM audit WHERE sequence >= 3")
    assert log.verify().records == 2
    with pytest.raises(AuditError, match="cut off"):
        log.verify(known=known)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit WHERE sequence = 3",
        "DELETE FROM audit",
        f"UPDATE audit SET hash = '{'0' * 64}' WHERE sequence = 3",
    ],
)
def test_a_running_server_does_not_continue_a_log_that_was_cut(
    log: AuditLog, engine: sa.Engine, statement: str
) -> None:
    log.append([decision(number) for number in range(3)])
    tamper(engine, statement)
    left = len(list(log.records()))
    with pytest.raises(AuditError, match="record 3, which this server wrote"):
        log.append([decision(4)])
    assert len(list(log.records())) == left


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET record = ''", "DELETE FROM audit", "DELETE FROM audit WHERE 1=1"],
)
def test_the_database_itself_refuses_changes(
    log: AuditLog, engine: sa.Engine, statement: str
) -> None:
    log.append([decision()])
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert log.verify().records == 1


def test_sqlite_replaces_no_record_either(tmp_path: Path) -> None:
    engine = open_database(str(tmp_path / "keys.db"))
    log = AuditLog(engine, KEY)
    log.append([decision(1), decision(2)])
    rows = "SELECT sequence, '', hash, seal FROM audit WHERE sequence = 1"
    gap = "SELECT 9, record, hash, seal FROM audit WHERE sequence = 1"
    for statement in (f"REPLACE INTO audit {rows}", f"INSERT INTO audit {gap}"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert log.verify().records == 2


def move_away(database: Path, to: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + suffix).rename(database.with_name(to + suffix))


def test_a_file_that_was_taken_away_is_noticed(tmp_path: Path) -> None:
    """Who goes on with a file that has lost its name records where nobody reads."""
    engine = open_database(str(tmp_path / "keys.db"))
    log = AuditLog(engine, KEY)
    log.append([decision(1)])
    move_away(tmp_path / "keys.db", "elsewhere.db")
    with pytest.raises(StoreError):
        log.append([decision(2)])
    assert not (tmp_path / "keys.db").exists()
    move_away(tmp_path / "elsewhere.db", "keys.db")
    log.append([decision(2)])
    assert log.verify().records == 2


def test_an_older_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    engine = open_database(str(tmp_path / "keys.db"))
    log = AuditLog(engine, KEY)
    log.append([decision(1)])
    older = AuditLog(open_database(str(tmp_path / "older.db")), KEY)
    older.append([decision(1)])
    log.append([decision(2)])
    move_away(tmp_path / "keys.db", "elsewhere.db")
    move_away(tmp_path / "older.db", "keys.db")
    with pytest.raises(AuditError, match="record 2, which this server wrote, is not in it"):
        log.append([decision(3)])


def test_without_a_key_nothing_is_sealed(engine: sa.Engine) -> None:
    log = AuditLog(engine, None)
    log.append([decision()])
    assert [record.seal for record in log.records()] == [None]
    assert log.verify().sealed == 0


def test_several_writers_share_one_chain(database_url: str) -> None:
    engines = [open_database(database_url) for _ in range(4)]

    def record(number: int) -> None:
        log = AuditLog(engines[number], KEY)
        for count in range(0, 50, 2):
            log.append([decision(number * 100 + count), decision(number * 100 + count + 1)])

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = AuditLog(engines[0], KEY)
    assert log.verify().records == 200
    assert len({record.decision["peer"] for record in log.records()}) == 200


def test_a_decision_that_cannot_be_recorded_is_an_error(engine: sa.Engine) -> None:
    recorder = Recorder(AuditLog(engine, KEY), Silent())
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE audit")
    dropped = decision(outcome=Outcome.DROPPED)
    refused, nothing = recorder([decision(), dropped])
    assert isinstance(refused, AuditError)
    assert "audit" in refused.message
    assert nothing is None
    assert recorder.problems == [refused.message]


def test_what_no_record_can_be_made_of_is_an_error_and_the_next_one_is_recorded(
    engine: sa.Engine,
) -> None:
    recorder = Recorder(AuditLog(engine, KEY), Silent())
    failures = recorder([decision(1), decision(2, reason=object())])
    assert [str(failure) for failure in failures] == ["audit log: internal error (TypeError)"] * 2
    assert recorder([decision(3)]) == [None]
    records = list(AuditLog(engine, KEY).records())
    assert [record.decision["peer"] for record in records] == [decision(3).peer]
    assert recorder.problems == []


def test_who_merely_left_is_not_in_the_log(engine: sa.Engine) -> None:
    recorder = Recorder(AuditLog(engine, KEY), Silent())
    many = [decision(n, outcome=Outcome.DROPPED if n % 2 else Outcome.REFUSED) for n in range(6)]
    assert recorder(many) == [None] * 6
    recorded = [record.decision["peer"] for record in AuditLog(engine, KEY).records()]
    assert recorded == [decision(n).peer for n in (0, 2, 4)]


def test_a_damaged_log_is_not_continued(log: AuditLog, engine: sa.Engine) -> None:
    log.append([decision(1)])
    tamper(engine, "UPDATE audit SET hash = 'x'")
    with pytest.raises(AuditError, match="damaged"):
        AuditLog(engine, KEY).append([decision(2)])
    assert len(list(log.records())) == 1


WRITER = """
import datetime, itertools, sys
from cloister.provision.audit import AuditLog
from cloister.provision.database import open_database
from cloister.provision.decision import Decision, Outcome
log = AuditLog(open_database(sys.argv[1]), None)
for count in itertools.count():
    peers = [f"{count}:{number}" for number in range(8)]
    now = datetime.datetime.now(datetime.timezone.utc)
    log.append([Decision(now, peer, Outcome.RELEASED, "default", "x") for peer in peers])
    for peer in peers:
        print(peer, flush=True)
"""


@pytest.fixture
def writing_process(database_url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, database_url],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    yield process
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_kill_9_loses_nothing_that_was_acknowledged(
    writing_process: subprocess.Popen[str], database_url: str
) -> None:
    assert writing_process.stdout is not None
    acknowledged = [writing_process.stdout.readline().strip() for _ in range(100)]
    writing_process.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in writing_process.stdout if line.endswith("\n")]
    log = AuditLog(open_database(database_url), None)
    log.verify()
    recorded = {record.decision["peer"] for record in log.records()}
    assert set(acknowledged) <= recorded


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    engine = open_database(str(tmp_path / "keys.db"))
    engine.dispose()
    (tmp_path / "keys.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(StoreError):
        AuditLog(engine, None).append([decision()])
