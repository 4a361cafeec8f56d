"""The audit log: every decision, in an order that cannot be changed afterwards unnoticed.

Each record carries SHA-256 of the record before it and of itself (a hash chain), and, where the
server has a store key, a seal: an HMAC of that hash. Changing, inserting or removing a record
breaks the chain; making a new chain needs the key. Cutting records off the end is noticed

- by a running server, which never continues a log that lacks what it wrote last;
- by whoever knows a later hash: the server reports each record's number and hash with the
  decision, ``cloister audit verify`` prints the last one, and takes one to look for.

Who replaces the whole database by an older copy while no server runs, and can also change what
the server reported, is not noticed.

A decision counts as recorded when the transaction with it is on the disk. Many at once share one
transaction, so that recording does not slow a busy server down.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from cloister.errors import AuditError, CloisterError
from cloister.provision.database import reading, utc, writing
from cloister.provision.decision import Decision
from cloister.provision.store_key import StoreKey
from cloister.provision.tables import AUDIT

GENESIS = hashlib.sha256(b"cloister audit log 1").hexdigest()
"""What the first record follows."""
_LAST = sa.select(AUDIT.c.sequence, AUDIT.c.hash).order_by(AUDIT.c.sequence.desc()).limit(1)
_INSERT = sa.insert(AUDIT)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class AuditRecord:
    """One recorded decision.

    Attributes:
        sequence: 1, 2, 3, ...
        record: the decision as canonical JSON; this text is what is hashed.
        hash: SHA-256 over the hash before and this record, hex.
        seal: HMAC of the hash under the store key, hex, or None.
    """

    sequence: int
    record: str
    hash: str
    seal: str | None

    @property
    def decision(self) -> dict[str, Any]:
        """The decision's fields.

        Raises:
            AuditError: the record was changed and is no decision any more.
        """
        try:
            fields = json.loads(self.record)
        except (ValueError, TypeError, RecursionError) as error:
            raise AuditError(f"audit log: record {self.sequence} was changed") from error
        if not isinstance(fields, dict):
            raise AuditError(f"audit log: record {self.sequence} was changed")
        return fields


@dataclasses.dataclass(frozen=True)
class AuditSummary:
    """What a verified log contains.

    Attributes:
        records: how many.
        head: hash of the last one; :data:`GENESIS` if there is none.
        sealed: how many carry a seal that was checked.
    """

    records: int
    head: str
    sealed: int


class AuditLog:
    """The log in a database.

    Args:
        engine: from :func:`cloister.provision.database.open_database`.
        key: seals records, and checks seals; None does neither.
    """

    def __init__(self, engine: sa.Engine, key: StoreKey | None) -> None:
        self._engine = engine
        self._key = key
        self._written: AuditRecord | None = None

    def append(self, decisions: Sequence[Decision]) -> list[AuditRecord]:
        """Record decisions in this order; they are on the disk when it returns.

        Raises:
            StoreError: the database refused; then none of them is recorded.
            AuditError: the log is damaged, or what this object wrote last is not in it.
        """
        with writing(self._engine, AUDIT) as connection:
            sequence, head = _end(connection)
            self._require_written(connection, sequence, head)
            records = []
            for decision in decisions:
                sequence += 1
                record = _canonical(sequence, decision)
                head = _chained(head, record)
                records.append(AuditRecord(sequence, record, head, self._seal(head)))
            connection.execute(_INSERT, [vars(item) for item in records])
        self._written = records[-1]
        return records

    def _require_written(self, connection: sa.Connection, sequence: int, head: str) -> None:
        written = self._written
        if written is None or (written.sequence, written.hash) == (sequence, head):
            return
        number = written.sequence
        found = connection.execute(sa.select(AUDIT.c.hash).where(AUDIT.c.sequence == number))
        if found.scalar() != written.hash:
            raise AuditError(
                f"audit log: record {number}, which this server wrote, is not in it any more",
                hint="someone cut the log, or put an older one in its place; keep the database as"
                " it is, and find out",
            )

    def records(self, *, after: int = 0) -> Iterator[AuditRecord]:
        """Yield the records behind number ``after``, in order."""
        with reading(self._engine) as connection:
            rows = connection.execution_options(yield_per=1000).execute(
                sa.select(AUDIT).where(AUDIT.c.sequence > after).order_by(AUDIT.c.sequence)
            )
            for row in rows:
                yield AuditRecord(*row)

    def verify(self, *, known: str | None = None) -> AuditSummary:
        """Check the whole log.

        Args:
            known: a hash that an earlier verification printed; it must still be there.

        Raises:
            AuditError: a record was changed, inserted or removed.
        """
        head, count, sealed = GENESIS, 0, 0
        known_is_there = known is None or known == GENESIS
        for record in self.records():
            count += 1
            if record.sequence != count:
                raise AuditError(f"audit log: record {count} is missing")
            head = _chained(head, str(record.record))
            if record.hash != head or not _is_numbered(record.record, count):
                raise AuditError(f"audit log: record {count} or one before it was changed")
            sealed += self._check_seal(record)
            known_is_there = known_is_there or known == head
        if not known_is_there:
            raise AuditError(
                f"audit log: the known hash {known} is not in it; records were cut off"
            )
        return AuditSummary(count, head, sealed)

    def _seal(self, head: str) -> str | None:
        return self._key.vouch(bytes.fromhex(head)).hex() if self._key else None

    def _check_seal(self, record: AuditRecord) -> bool:
        expected = self._seal(record.hash)
        if expected is None:
            return False
        if not hmac.compare_digest(expected.encode(), str(record.seal).encode()):
            raise AuditError(f"audit log: record {record.sequence} was not made with the store key")
        return True


def _end(connection: sa.Connection) -> tuple[int, str]:
    last = connection.execute(_LAST).first()
    if last is None:
        return 0, GENESIS
    if not _HASH.fullmatch(str(last.hash)):
        raise AuditError(f"audit log: record {last.sequence} is damaged; nothing is added to it")
    return last.sequence, last.hash


def _canonical(sequence: int, decision: Decision) -> str:
    fields = decision.to_dict() | {"sequence": sequence, "time": utc(decision.time)}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _is_numbered(record: str, sequence: int) -> bool:
    try:
        return bool(json.loads(record)["sequence"] == sequence)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _chained(head: str, record: str) -> str:
    return hashlib.sha256(bytes.fromhex(head) + record.encode()).hexdigest()


def as_audit_error(error: Exception) -> AuditError:
    """Return what went wrong in :meth:`AuditLog.append`, as the failure to record that it is."""
    if isinstance(error, AuditError):
        return error
    if isinstance(error, CloisterError):
        return AuditError(f"audit log: {error.message}", hint=error.hint)
    return AuditError(f"audit log: internal error ({type(error).__name__})")
