"""``cloister serve``: a key server for the enclaves that its owner expects."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.trust import FILE, trust_from, trust_options, utc_now

if TYPE_CHECKING:
    from cloister.attestation.policy import Policy
    from cloister.attestation.trust import Trust
    from cloister.provision.decision import Decision, Secret
    from cloister.provision.server import KeyServer


@click.command()
@click.option(
    "--key", "key_file", required=True, metavar="[NAME=]FILE", help="Wrap key to release."
)
@click.option(
    "--enclave",
    "enclaves",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="APP",
    help="Built enclave that may have it; reads APP.sig. Repeatable.",
)
@click.option("--mrenclave", "mrenclaves", multiple=True, metavar="HEX", help="Or its measurement.")
@click.option("--mrsigner", metavar="HEX", help="Or its signer; needs the next two.")
@click.option("--isv-prod-id", type=click.IntRange(0, 65535), help="With --mrsigner: the product.")
@click.option("--isv-svn", type=click.IntRange(0, 65535), help="With --mrsigner: lowest version.")
@click.option("--cert", type=FILE, required=True, help="Server certificate (PEM).")
@click.option("--cert-key", type=FILE, required=True, help="Its private key (PEM).")
@click.option(
    "--listen",
    default="localhost:4433",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@trust_options
@click.option("--count", type=click.IntRange(1), help="Exit after this many releases.")
@click.option("--hex", "as_hex", is_flag=True, help="Send 32 hex digits and NUL, for Graphene.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def serve(
    key_file: str,
    enclaves: tuple[Path, ...],
    mrenclaves: tuple[str, ...],
    mrsigner: str | None,
    isv_prod_id: int | None,
    isv_svn: int | None,
    cert: Path,
    cert_key: Path,
    listen: str,
    bundles: tuple[Path, ...],
    collaterals: tuple[Path, ...],
    pccs: str | None,
    statuses: tuple[str, ...],
    count: int | None,
    as_hex: bool,
    as_json: bool,
) -> None:
    """Release a key to the enclave you expect, and to nothing else.

    Each client proves by its TLS certificate which enclave it is and on which platform it runs.
    Whoever fails one check gets no byte of the key; each decision is one line, with the reason.
    Ctrl-C stops it after the clients that are being served.

    \b
    Example:  cloister serve --key wrap-key --enclave pytorch \\
                --cert certs/server.crt --cert-key certs/server.key \\
                --trust-simulated platform.json
    """
    from cloister.attestation.policy import TcbStatus, all_of, any_of
    from cloister.attestation.trust import Authenticator
    from cloister.provision.decision import ClientJudge
    from cloister.provision.server import KeyServer

    signer = _signer_policy(mrsigner, isv_prod_id, isv_svn)
    identities = [*map(_built_enclave, enclaves), *_measurements(mrenclaves), *signer]
    policy = all_of(_any(identities, any_of), TcbStatus("UpToDate", *statuses))
    trust = trust_from(bundles, collaterals, pccs)
    secret = _secret(key_file, policy, as_hex=as_hex)

    report = _Report(as_json)
    server = KeyServer(
        ClientJudge([secret], Authenticator(trust, utc_now)),
        certificate=cert,
        key=cert_key,
        record=report.decision,
        clock=utc_now,
    )
    try:
        _run(server, listen, count, report, secret, trust)
    finally:
        secret.wipe()


def _run(
    server: KeyServer,
    listen: str,
    count: int | None,
    report: _Report,
    secret: Secret,
    trust: Trust,
) -> None:
    from cloister.listen import parse_listen

    host, port = server.listen(*parse_listen(listen))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    report.start(host, port, secret, trust)
    server.serve(releases=count)
    report.end(server.releases)


class _Report:
    """Prints what happens, for people or as one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def start(self, host: str, port: int, secret: Secret, trust: Trust) -> None:
        roots = [
            f"{'SIMULATED: ' if anchor.simulated else ''}{anchor.name},"
            f" SHA-256 {anchor.fingerprint}"
            for anchor in trust.anchors
        ]
        lines = [
            f"releases {secret.name} to: {secret.policy.describe()}",
            *(f"on platforms under: {root}" for root in roots),
            f"listening on {host}:{port}",
        ]
        accepts = secret.policy.describe()
        event = {"event": "listening", "host": host, "port": port, "secret": secret.name}
        self._print({**event, "accepts": accepts, "roots": roots}, lines)

    def decision(self, decision: Decision) -> None:
        self._print({"event": "decision", **decision.to_dict()}, [decision.to_line()])

    def end(self, releases: int) -> None:
        self._print({"event": "stopped", "releases": releases}, [f"stopped: {releases} released"])

    def _print(self, event: dict[str, Any], lines: list[str]) -> None:
        text = json.dumps(event) if self._as_json else "\n".join(lines)
        # One write a report, so that threads do not mix their lines.
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _any(identities: list[Policy], any_of: Any) -> Policy:
    from cloister.errors import InputError

    if not identities:
        raise InputError(
            "no enclave is named, so nobody could get the key",
            hint="name the built enclave (--enclave APP) or its measurement (--mrenclave HEX)",
        )
    policy: Policy = identities[0] if len(identities) == 1 else any_of(*identities)
    return policy


def _built_enclave(app: Path) -> Policy:
    from cloister.attestation.policy import MrEnclave, MrSigner, all_of
    from cloister.errors import InputError
    from cloister.sgx.sigstruct import Sigstruct

    path = app if app.suffix == ".sig" else app.with_name(f"{app.name}.sig")
    try:
        sigstruct = Sigstruct.unpack(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; it says which enclave {app.name} is",
            hint=f"build the enclave (cloister build), or copy {path.name} from its builder",
        ) from error
    sigstruct.verify()
    signer = MrSigner(sigstruct.mr_signer, sigstruct.isv_prod_id, sigstruct.isv_svn)
    return all_of(MrEnclave(sigstruct.mr_enclave), signer)


def _measurements(texts: tuple[str, ...]) -> list[Policy]:
    from cloister.attestation.policy import MrEnclave

    return [MrEnclave(_hex("--mrenclave", text)) for text in texts]


def _signer_policy(
    mrsigner: str | None, isv_prod_id: int | None, isv_svn: int | None
) -> list[Policy]:
    from cloister.attestation.policy import MrSigner
    from cloister.errors import InputError

    given = [value is not None for value in (mrsigner, isv_prod_id, isv_svn)]
    if not any(given):
        return []
    if mrsigner is None or isv_prod_id is None or isv_svn is None:
        raise InputError("--mrsigner, --isv-prod-id and --isv-svn belong together; give all three")
    return [MrSigner(_hex("--mrsigner", mrsigner), isv_prod_id, isv_svn)]


def _hex(option: str, text: str) -> bytes:
    from cloister.errors import InputError

    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise InputError(f"{option} {text}: not hexadecimal") from error
    if len(value) != 32:
        raise InputError(f"{option}: {len(value)} bytes, expected 32 (64 hex digits)")
    return value


def _secret(argument: str, policy: Policy, *, as_hex: bool) -> Secret:
    import re

    from cloister.encrypted.keys import read_wrap_key
    from cloister.provision.decision import Secret

    match = re.fullmatch(r"([A-Za-z0-9_.-]+)=(.+)", argument)
    name, path = (match[1], match[2]) if match else ("default", argument)
    key = read_wrap_key(path)
    return Secret(name, bytearray(key.hex().encode() + b"\0" if as_hex else key), policy)
