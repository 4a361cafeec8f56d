"""``cloister platform``: show the platform of this machine, export its root of trust."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.rehearse import rehearsal_options

if TYPE_CHECKING:
    from cloister.platforms.simulated import SimulatedPlatform


@click.group()
def platform() -> None:
    """Show the platform; export its root.

    \b
    Example:  cloister platform export platform.json
    """


@platform.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Say which platform enclaves run on here, and what it protects against.

    Of the SIMULATED platform, say also under which root.

    \b
    Example:  cloister platform show
    """
    import json

    from cloister.platforms.base import choose_name, protection_of

    name = choose_name()
    if name != "simulated":
        facts = {"name": name, "simulated": False, "description": protection_of(name)}
        click.echo(json.dumps(facts) if as_json else f"{name}: {facts['description']}")
        return
    chosen = _simulated()
    anchor = chosen.trust_anchor()
    facts = {
        "name": chosen.name,
        "simulated": chosen.simulated,
        "description": chosen.description,
        "root": anchor.name,
        "root_sha256": anchor.fingerprint,
        "collateral_until": chosen.collateral_until().isoformat(),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{facts['name']}: {facts['description']}")
    click.echo(f"root: {facts['root']}\n      SHA-256 {facts['root_sha256']}")
    click.echo(f"collateral valid until {facts['collateral_until']}")


@platform.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@rehearsal_options
def export(file: str, **rehearsal: Any) -> None:
    """Write root and collateral of the SIMULATED platform to FILE (`-`: standard output).

    Give the file to the owner, who names it to trust this platform:
    `cloister serve --trust-simulated FILE`. It holds no secret. Its collateral is valid for some
    weeks; export it again then. The --tcb-status and following options rehearse bad days.

    \b
    Example:  cloister platform export platform.json
              cloister platform export bad.json --tcb-status OutOfDate
    """
    from pathlib import Path

    from cloister.cli.rehearse import conditions_from
    from cloister.files import write_atomically

    bundle = _simulated().export(conditions_from(**rehearsal))
    text = bundle.to_json() + "\n"
    if file == "-":
        sys.stdout.write(text)
        return
    write_atomically(Path(file), text.encode())
    click.echo(f"{file}: root and collateral of a SIMULATED platform,", err=True)
    click.echo(f"SHA-256 of the root: {bundle.anchor.fingerprint}", err=True)


def _simulated() -> SimulatedPlatform:
    from cloister.platforms.simulated import SimulatedPlatform

    return SimulatedPlatform.of_this_machine()
