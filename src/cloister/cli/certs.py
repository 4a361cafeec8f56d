"""``cloister certs``: TLS certificates for a key server."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def certs() -> None:
    """Make TLS certificates for a key server.

    \b
    Example:  cloister certs new certs --host keys.example.org
    """


@certs.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    default=("localhost",),
    show_default=True,
    help="DNS name or IP address under which enclaves reach the server; repeatable.",
)
@click.option(
    "--days", type=click.IntRange(1, 36500), default=1825, show_default=True, help="Validity."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(directory: Path, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make a CA and a server certificate in DIRECTORY.

    It gets ca.crt (for the enclave: SECRET_PROVISION_CA_CHAIN_PATH), server.crt and server.key
    (for `cloister serve`). The CA's own key signs once and is not kept: nobody, you included, can
    make another server that enclaves with this ca.crt believe. For a new server certificate make
    a new pair and build the enclave again.

    \b
    Example:  cloister certs new certs
              cloister certs new certs --host keys.example.org --host 203.0.113.7
    """
    import datetime
    import json

    from cloister.errors import InputError
    from cloister.files import write_atomically
    from cloister.provision.certificates import make_server_certificates

    names = ("server.key", "server.crt", "ca.crt")
    for name in names:
        if (directory / name).exists():
            raise InputError(
                f"{directory / name}: already exists; it is never overwritten",
                hint="choose another directory, or move the old files away",
            )
    made = make_server_certificates(
        hosts,
        now=datetime.datetime.now(datetime.timezone.utc),
        lifetime=datetime.timedelta(days=days),
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "server.key", made.key, mode=0o600, replace=False)
    write_atomically(directory / "server.crt", made.certificate, replace=False)
    write_atomically(directory / "ca.crt", made.ca, replace=False)
    if as_json:
        paths = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
        files = {what: str(directory / name) for what, name in paths.items()}
        click.echo(json.dumps({**files, "hosts": hosts}))
        return
    click.echo(f"{directory / 'ca.crt'}: trust it in the manifest (the CA's key was not kept)")
    click.echo(f"{directory / 'server.crt'}, server.key: for cloister serve, {', '.join(hosts)}")
