"""``cloister pccs``: serve collateral over the PCS API."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.rehearse import rehearsal_options
from cloister.cli.trust import FILE

if TYPE_CHECKING:
    from cloister.pccs.app import Backend


MAX_CONNECTIONS = 512


@click.command()
@click.option("--simulated", is_flag=True, help="Serve the SIMULATED platform of this machine.")
@click.option(
    "--upstream",
    metavar="URL",
    help="Serve what this PCS has: `intel`, or an address. Answers are kept until they run out.",
)
@click.option("--database", type=click.Path(path_type=Path), help="Where they are kept (SQLite).")
@click.option("--api-key", "api_key_file", type=FILE, help="File with the API key for --upstream.")
@click.option(
    "--listen", default="localhost:8081", show_default=True, metavar="HOST:PORT", help="Where."
)
@click.option("--cert", type=FILE, help="Serve HTTPS with this certificate (PEM).")
@click.option("--cert-key", type=FILE, help="Its private key (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Announce the address as JSON.")
@rehearsal_options
def pccs(
    simulated: bool,
    upstream: str | None,
    database: Path | None,
    api_key_file: Path | None,
    listen: str,
    cert: Path | None,
    cert_key: Path | None,
    as_json: bool,
    **rehearsal: Any,
) -> None:
    """Serve collateral over HTTP (PCS API, version 4) until Ctrl-C.

    Either of the SIMULATED platform of this machine, on good days or rehearsed bad ones; or a
    cache before Intel's service, which keeps its API key to itself and goes on serving while
    that service cannot be reached.

    \b
    Example:  cloister pccs --simulated --listen localhost:8081
              cloister pccs --upstream intel --api-key intel.key --database pccs.db
    """
    from cloister.asgi import serve_until_stopped
    from cloister.cli.rehearse import conditions_from
    from cloister.errors import InputError
    from cloister.listen import bound_address, open_listeners, parse_listen
    from cloister.pccs.app import create_app

    if simulated == (upstream is not None):
        raise InputError("give either --simulated or --upstream URL")
    if not simulated and any(rehearsal.values()):
        raise InputError(
            "only the SIMULATED platform can rehearse bad days", hint="--simulated, not --upstream"
        )
    if simulated:
        backend = _simulated(conditions_from(**rehearsal))
    else:
        backend = _caching(str(upstream), database, api_key_file)
    context = _tls(cert, cert_key)
    listeners = open_listeners(*parse_listen(listen))
    host, port = bound_address(listeners)

    def announce() -> None:
        what = "SIMULATED collateral" if simulated else f"collateral of {upstream}"
        event = {"event": "listening", "host": host, "port": port, "simulated": simulated}
        click.echo(json.dumps(event) if as_json else f"{what} on {host}:{port}")

    serve_until_stopped(
        create_app(backend),
        listeners,
        context=context,
        on_ready=announce,
        connections=MAX_CONNECTIONS,
    )


def _simulated(conditions: Any) -> Backend:
    from cloister.platforms.simulated import SimulatedPlatform
    from cloister.platforms.simulated.pccs import SimulatedBackend

    platform = SimulatedPlatform.of_this_machine()
    return SimulatedBackend(lambda: platform.export(conditions).collateral)


def _caching(upstream: str, database: Path | None, api_key_file: Path | None) -> Backend:
    import sqlalchemy as sa

    from cloister.attestation import intel
    from cloister.attestation.service import INTEL_PCS
    from cloister.cli.trust import utc_now
    from cloister.files import cache_home
    from cloister.pccs.cache import CachingBackend
    from cloister.provision.database import failures_are_ours

    if database is None:
        database = cache_home() / "pccs.db"
        database.parent.mkdir(parents=True, exist_ok=True)
    with failures_are_ours():
        return CachingBackend(
            sa.create_engine(f"sqlite:///{database}"),
            anchor=intel(),
            clock=utc_now,
            upstream=INTEL_PCS if upstream == "intel" else upstream,
            api_key=_api_key(api_key_file) if api_key_file else None,
        )


def _api_key(path: Path) -> str:
    """Read an API key; not a word of it gets into an error."""
    from cloister.errors import InputError

    key = path.read_bytes().strip()
    if not re.fullmatch(rb"[!-~]{1,256}", key):
        raise InputError(
            f"{path}: not an API key: expected one line of letters and digits",
            hint="the service's portal shows two keys; write one of them to the file",
        )
    return key.decode("ascii")


def _tls(cert: Path | None, cert_key: Path | None) -> Any:
    import ssl

    from cloister.errors import InputError

    if cert is None and cert_key is None:
        return None
    if cert is None or cert_key is None:
        raise InputError("--cert and --cert-key belong together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, cert_key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"{cert} and {cert_key}: not a certificate and its key") from error
    return context
