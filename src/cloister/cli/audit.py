"""``cloister audit``: the log of every decision of a key server."""

from __future__ import annotations

import collections
import json
import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.provision.audit import AuditLog

_STORE = click.option("--store", required=True, metavar="DATABASE", help="The server's database.")
_STORE_KEY = click.option(
    "--store-key", metavar="SOURCE", help="Its key, to check the seals: file:PATH, env:NAME, ..."
)


@click.group()
def audit() -> None:
    """Read and verify the audit log of a key server.

    \b
    Example:  cloister audit verify --store keys.db --store-key file:store.key
    """


@audit.command()
@_STORE
@click.option(
    "--after", type=click.IntRange(0, 2**63 - 1), default=0, help="Only records behind this number."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a record.")
def show(store: str, after: int, as_json: bool) -> None:
    """Print the recorded decisions, oldest first.

    \b
    Example:  cloister audit show --store keys.db
    """
    from cloister.text import printable

    for record in _log(store, None).records(after=after):
        if as_json:
            click.echo(json.dumps({**record.decision, "hash": record.hash}))
            continue
        fields = collections.defaultdict(lambda: None, record.decision)
        what = f"released {fields['secret']} to" if fields["secret"] else fields["outcome"]
        identity = (
            f" [{fields['identity']}, TCB {fields['tcb_status']}]" if fields["identity"] else ""
        )
        simulated = " SIMULATED" if fields["simulated"] else ""
        line = f"{record.sequence} {fields['time']} {what} {fields['peer']}: {fields['reason']}"
        click.echo(printable(line + identity + simulated))


@audit.command()
@_STORE
@_STORE_KEY
@click.option("--known", metavar="HASH", help="A hash printed by an earlier verification.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(store: str, store_key: str | None, known: str | None, as_json: bool) -> None:
    """Check that no record was changed, inserted or removed; print the last hash.

    Records that were cut off the end are noticed only with --known: keep the printed hash
    somewhere else. Without --store-key, the chain is checked but not who made it.

    \b
    Example:  cloister audit verify --store keys.db --store-key file:store.key
    """
    from cloister.errors import InputError

    if known is not None and not re.fullmatch("[0-9A-Fa-f]{64}", known):
        raise InputError(
            "--known: not a hash of the log", hint="64 hex digits, as printed by verify"
        )
    summary = _log(store, store_key).verify(known=known and known.lower())
    if as_json:
        facts = {"records": summary.records, "head": summary.head, "sealed": summary.sealed}
        click.echo(json.dumps(facts))
        return
    checked = "chain and seals hold" if store_key else "the chain holds; seals were not checked"
    click.echo(f"{summary.records} records: {checked}")
    click.echo(f"last hash: {summary.head}")


def _log(database: str, store_key: str | None) -> AuditLog:
    from cloister.provision.audit import AuditLog
    from cloister.provision.database import open_database
    from cloister.provision.store_key import load_store_key
    from cloister.provision.tables import AUDIT

    key = load_store_key(store_key) if store_key else None
    return AuditLog(open_database(database, existing=[AUDIT]), key)
