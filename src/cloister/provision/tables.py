"""The tables of the key server's database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

METADATA = sa.MetaData()

SECRETS = sa.Table(
    "secrets",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("updated", sa.String(40), nullable=False),
)
SECRETS_CHANGES = sa.Table(
    "secrets_changes",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("content", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=False),
)
"""Each change of the secrets: a digest of all of them after it, and a seal of that, its number and
the seal before."""
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=True),
)

# Append only: the database itself refuses changes by anyone who does not first remove this.
_REFUSALS = {
    "sqlite": [
        f"CREATE TRIGGER IF NOT EXISTS audit_no_{event.lower()} BEFORE {event} ON audit"
        " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for event in ("UPDATE", "DELETE")
    ]
    + [
        # REPLACE would remove the record of that number without asking the other triggers.
        "CREATE TRIGGER IF NOT EXISTS audit_only_behind_the_last BEFORE INSERT ON audit"
        " WHEN NEW.sequence != (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit)"
        " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger AS $$"
        " BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
    ],
}


@sa.event.listens_for(AUDIT, "after_create")
def _refuse_changes(_table: sa.Table, connection: sa.Connection, **_: Any) -> None:
    for statement in _REFUSALS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


@sa.event.listens_for(METADATA, "after_create")
def _refuse_in_older_logs(_: sa.MetaData, connection: sa.Connection, **__: Any) -> None:
    if connection.dialect.name == "sqlite":  # whose triggers are made only where they are missing
        _refuse_changes(AUDIT, connection)
