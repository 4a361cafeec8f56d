"""``cloister quote``: look at quotes, verify them, fetch their collateral."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.streams import data_input
from cloister.cli.trust import FILE, root_option, trust_options

if TYPE_CHECKING:
    import datetime

    from cloister.attestation import Verdict
    from cloister.attestation.ias import IasReport
    from cloister.attestation.policy import Policy

_QUOTE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.group()
def quote() -> None:
    """Look at quotes and verify them.

    \b
    Example:  cloister quote verify quote.bin --trust-simulated platform.json
    """


@quote.command()
@click.argument("file", type=_QUOTE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: str, as_json: bool) -> None:
    """Show what the quote in FILE (`-`: standard input) claims. Nothing is verified.

    \b
    Example:  cloister quote show quote.bin
    """
    facts = _facts(file)
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo("NOT VERIFIED: whoever made these bytes chose what they say")
    if facts["simulated"]:
        click.echo("SIMULATED: its certificates are of a simulated platform")
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, part in value.items():
                click.echo(f"  {inner}: {part}")
        elif name not in ("verified", "simulated"):
            text = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{name}: {text}")


def _facts(file: str) -> dict[str, Any]:
    from cloister.attestation.evidence import epid_dict, quote_dict
    from cloister.errors import AttestationError
    from cloister.sgx.epid import is_epid, parse_epid_quote
    from cloister.sgx.quote import parse_quote

    data = _read(file)
    try:
        return epid_dict(parse_epid_quote(data)) if is_epid(data) else quote_dict(parse_quote(data))
    except AttestationError as error:
        where = "standard input" if file == "-" else file
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error


@quote.command()
@click.argument("file", type=_QUOTE)
@trust_options
@root_option
@click.option(
    "--policy", "policy_file", type=FILE, help="Policy (TOML): which enclave is expected."
)
@click.option("--at", metavar="TIME", help="Verify as of this time instead of now.")
@click.option(
    "--ias-report",
    type=FILE,
    help="EPID: the stored answer of Intel's service, with its headers (curl -i).",
)
@click.option(
    "--ias-signature", type=FILE, help="EPID: signature, if the answer is the body alone."
)
@click.option("--ias-certificates", type=FILE, help="EPID: certificates, likewise.")
@click.option("--ias-nonce", metavar="HEX", help="EPID: the nonce that was sent.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    file: str,
    bundles: tuple[Path, ...],
    collaterals: tuple[Path, ...],
    pccs: str | None,
    roots: tuple[Path, ...],
    statuses: tuple[str, ...],
    policy_file: Path | None,
    at: str | None,
    ias_report: Path | None,
    ias_signature: Path | None,
    ias_certificates: Path | None,
    ias_nonce: str | None,
    as_json: bool,
) -> None:
    """Verify the quote in FILE (`-`: standard input); print every check and the verdict.

    Without a policy, any enclave on a good platform is accepted: that proves a platform, not a
    program. Exits with 0 if the quote is accepted and with 3 if not.

    \b
    A policy is a TOML file, every entry of which must hold:
      version = 1
      mrenclave = ["64 hex digits", "..."]     # one of these
      tcb_status = ["UpToDate"]                # the default
      roots = ["intel"]                        # the default; or SHA-256 of a simulated root
    and also: mrsigner with isv_prod_id and minimum_isv_svn, mrtd, rtmr0 to rtmr3, attributes,
    td_attributes, advisories, minimum_tcb_date, report_data, [[any]], [[all]].

    An EPID quote is verified by a report that Intel's service, retired since, gave about it and
    that was stored then (--ias-report); --root names another service's root. A policy accepts
    it only with roots = ["intel-epid"].

    \b
    Example:  cloister quote verify quote.bin --pccs intel
              cloister quote verify quote.bin --collateral collateral.json --at 2025-06-20
              cloister quote verify epid.quote --ias-report answer.http --policy policy.toml
    """
    from cloister.attestation.trust import Authenticator
    from cloister.cli.trust import parse_at, quote_policy, trust_from
    from cloister.errors import InputError
    from cloister.sgx.epid import is_epid
    from cloister.sgx.quote import parse_header

    now = parse_at(at)
    policy = quote_policy(policy_file, statuses)
    data = _read(file)
    if ias_report is None and (ias_signature or ias_certificates or ias_nonce):
        raise InputError(
            "--ias-signature, --ias-certificates and --ias-nonce belong to --ias-report",
            hint="--ias-report FILE: the answer that the service gave in its time",
        )
    if ias_report is not None:
        stored = _stored(ias_report, ias_signature, ias_certificates)
        verdict = _verify_stored(stored, data, roots, now, policy, ias_nonce)
    else:
        if is_epid(data):
            parse_header(data)  # says why nothing but a stored report can help
        authenticator = Authenticator(trust_from(bundles, collaterals, pccs, roots), lambda: now)
        verdict = authenticator.authenticate(data).judge(policy)
    click.echo(json.dumps(verdict.to_dict()) if as_json else verdict.to_text())
    verdict.require()


def _stored(report: Path, signature: Path | None, certificates: Path | None) -> IasReport:
    from cloister.attestation.ias import read_stored

    return read_stored(
        report.read_bytes(),
        signature.read_bytes() if signature else None,
        certificates.read_bytes() if certificates else None,
    )


def _verify_stored(
    stored: IasReport,
    data: bytes,
    roots: tuple[Path, ...],
    now: datetime.datetime,
    policy: Policy,
    nonce: str | None,
) -> Verdict:
    from cloister.attestation.anchors import TrustAnchor, intel_ias
    from cloister.attestation.ias import verify_ias_report

    anchors = [TrustAnchor.from_pem(path.read_bytes()) for path in roots] or [intel_ias()]
    return verify_ias_report(stored, data, anchors=anchors, now=now, policy=policy, nonce=nonce)


@quote.command()
@click.argument("file", type=_QUOTE)
@click.argument("output", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--pccs", default="intel", show_default=True, metavar="URL", help="Where to ask.")
@root_option
def collateral(file: str, output: str, pccs: str, roots: tuple[Path, ...]) -> None:
    """Fetch the collateral for the quote in FILE and write it to OUTPUT (JSON of dcap-qvl).

    With it, quotes of platforms of that kind can be verified where there is no network, until it
    runs out.

    \b
    Example:  cloister quote collateral quote.bin collateral.json
    """
    from cloister.attestation import TrustAnchor, intel
    from cloister.attestation.dcap import kind_of
    from cloister.attestation.expiry import expires
    from cloister.attestation.service import INTEL_PCS, CollateralService
    from cloister.files import write_atomically
    from cloister.sgx.quote import parse_quote

    anchor = TrustAnchor.from_pem(roots[0].read_bytes()) if roots else intel()
    service = CollateralService(INTEL_PCS if pccs == "intel" else pccs, anchor)
    fetched = service.get(kind_of(parse_quote(_read(file))))
    text = fetched.to_json() + "\n"
    if output == "-":
        sys.stdout.write(text)
        return
    write_atomically(Path(output), text.encode())
    click.echo(f"{output}: valid until {expires(fetched).isoformat()}", err=True)


def _read(file: str) -> bytes:
    from cloister.sgx.quote import MAX_QUOTE_SIZE

    limit = MAX_QUOTE_SIZE + 1
    if file == "-":
        return data_input().read(limit)
    with Path(file).open("rb") as stream:
        return stream.read(limit)
