"""``cloister attest``: verify the enclave behind a live TLS server."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cloister.cli.numbers import SECONDS
from cloister.cli.trust import FILE, root_option, trust_options


@click.command()
@click.argument("address", metavar="HOST:PORT")
@trust_options
@root_option
@click.option(
    "--policy", "policy_file", type=FILE, help="Policy (TOML): which enclave is expected."
)
@click.option(
    "--timeout", type=SECONDS, default=10.0, show_default=True, help="Seconds for the handshake."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def attest(
    address: str,
    bundles: tuple[Path, ...],
    collaterals: tuple[Path, ...],
    pccs: str | None,
    roots: tuple[Path, ...],
    statuses: tuple[str, ...],
    policy_file: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Connect to HOST:PORT and verify the evidence in its TLS certificate.

    The server must present an RA-TLS certificate. Options and policy are those of
    `cloister quote verify`. Exits with 0 if it is accepted and with 3 if not.

    \b
    Example:  cloister attest service.example.org:443 --pccs intel --policy policy.toml
    """
    from cloister.attestation.trust import Authenticator
    from cloister.cli.trust import quote_policy, trust_from, utc_now
    from cloister.provision.request import parse_address
    from cloister.ratls.peer import fetch_certificate
    from cloister.ratls.verify import authenticate_certificate

    policy = quote_policy(policy_file, statuses)
    authenticator = Authenticator(trust_from(bundles, collaterals, pccs, roots), utc_now)
    server = parse_address(address)
    certificate = fetch_certificate(server.host, server.port, timeout=timeout)
    verdict = authenticate_certificate(certificate, authenticator).judge(policy)
    click.echo(json.dumps(verdict.to_dict()) if as_json else verdict.to_text())
    verdict.require()
