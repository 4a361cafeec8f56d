"""``cloister doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.doctor import Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Check everything that a run needs, make a tiny run, and name what is missing.

    Exits with 1 if programs cannot run here.

    \b
    Example:  cloister doctor
    """
    import json

    from cloister.doctor import OWNER_COMMANDS, Machine, can_run, diagnose, tiny_run

    findings = []
    for found in diagnose(Machine.here(), tiny_run):
        findings.append(found)
        if not as_json:
            _show(found)
    able = can_run(findings)
    if as_json:
        shown = [{**vars(found), "state": found.state.value} for found in findings]
        click.echo(json.dumps({"can_run": able, "checks": shown}))
    else:
        click.echo("programs can run here" if able else "programs CANNOT run here")
        click.echo(f"in any case these work: {OWNER_COMMANDS}")
    return 0 if able else 1


def _show(found: Finding) -> None:
    state = found.state.value
    click.echo(f"{state:8} {found.name}: {found.meaning}")
    if found.mend:
        click.echo(f"{'':8} {'mend' if found.needed else 'if wanted'}: {found.mend}")
