"""``cloister serve``: a key server for the enclaves that its owner expects."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloister.cli.numbers import Number
from cloister.cli.streams import forget_output
from cloister.cli.trust import FILE, trust_from, trust_options, utc_now
from cloister.signals import STOPPING, heeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.attestation.policy import Policy
    from cloister.attestation.trust import Authenticator, Trust
    from cloister.errors import CloisterError
    from cloister.provision.audit import AuditRecord
    from cloister.provision.decision import ClientJudge, Decision, Secret
    from cloister.provision.service import Settings


@click.command()
@click.option("--key", "key_file", metavar="[NAME=]FILE", help="Wrap key to release.")
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
@click.option("--hex", "as_hex", is_flag=True, help="Send 32 hex digits and NUL, for Graphene.")
@click.option(
    "--store",
    metavar="DATABASE",
    help="Or release what `cloister secret put` stored there, and keep an audit log.",
)
@click.option("--store-key", metavar="SOURCE", help="Its key: file:PATH, env:NAME, command:...")
@click.option("--audit", metavar="DATABASE", help="With --key: keep an audit log there.")
@click.option("--cert", type=FILE, required=True, help="Server certificate (PEM).")
@click.option("--cert-key", type=FILE, required=True, help="Its private key (PEM).")
@click.option(
    "--listen",
    default="localhost:4433",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@click.option("--admin", metavar="HOST:PORT", help="Serve /metrics and /healthz there (HTTP).")
@trust_options
@click.option("--count", type=click.IntRange(1), help="Exit after this many releases.")
@click.option(
    "--max-clients",
    type=click.IntRange(1, 10000),
    default=256,
    show_default=True,
    help="Clients that are served at once, three quarters of them from one address; others wait.",
)
@click.option(
    "--client-timeout",
    type=Number(0.1, 600),
    default=10.0,
    show_default=True,
    help="Seconds that one client has.",
)
@click.option(
    "--rate",
    type=Number(0.1, 1e9),
    default=100.0,
    show_default=True,
    help="Connections a second from one address that are begun with, on average; others wait.",
)
@click.option(
    "--burst",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Connections from one address that are begun with at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def serve(
    key_file: str | None,
    enclaves: tuple[Path, ...],
    mrenclaves: tuple[str, ...],
    mrsigner: str | None,
    isv_prod_id: int | None,
    isv_svn: int | None,
    as_hex: bool,
    store: str | None,
    store_key: str | None,
    audit: str | None,
    cert: Path,
    cert_key: Path,
    listen: str,
    admin: str | None,
    bundles: tuple[Path, ...],
    collaterals: tuple[Path, ...],
    pccs: str | None,
    statuses: tuple[str, ...],
    count: int | None,
    max_clients: int,
    client_timeout: float,
    rate: float,
    burst: int,
    as_json: bool,
) -> None:
    """Release a key to the enclave you expect, and to nothing else.

    Each client proves by its TLS certificate which enclave it is and on which platform it runs.
    Whoever fails one check gets no byte of the key; each decision is one line, with the reason.
    Ctrl-C stops it after the clients that are being served; SIGHUP reads the files of
    --trust-simulated and --collateral again.

    \b
    Example:  cloister serve --key wrap-key --enclave pytorch \\
                --cert certs/server.crt --cert-key certs/server.key \\
                --trust-simulated platform.json
              cloister serve --store keys.db --store-key file:store.key \\
                --cert certs/server.crt --cert-key certs/server.key --pccs intel
    """
    from cloister.listen import parse_listen
    from cloister.provision.limits import Limits
    from cloister.provision.service import Settings

    settings = Settings(
        certificate=cert,
        key=cert_key,
        listen=parse_listen(listen),
        admin=parse_listen(admin) if admin else None,
        limits=Limits(
            max_clients=max_clients,
            max_per_address=max(1, max_clients * 3 // 4),
            client_timeout=client_timeout,
            rate=rate,
            burst=burst,
        ),
        releases=count,
    )
    signer = (mrsigner, isv_prod_id, isv_svn)
    named = bool(enclaves or mrenclaves) or any(part is not None for part in signer)
    _require_one_mode(key_file, store, store_key, audit, named=named or as_hex or bool(statuses))
    parts = Parts(
        settings, lambda: trust_from(bundles, collaterals, pccs), Report(as_json), store_key
    )
    if store is not None:
        parts.serve_store(store)
    elif key_file is not None:
        policy = _identity_policy(enclaves, mrenclaves, signer, statuses)
        parts.serve_one(read_secret(key_file, policy, as_hex=as_hex), audit)


def _require_one_mode(
    key_file: str | None,
    store: str | None,
    store_key: str | None,
    audit: str | None,
    *,
    named: bool,
) -> None:
    from cloister.errors import InputError

    if (key_file is None) == (store is None):
        raise InputError(
            "give either --key FILE or --store DATABASE",
            hint="one key: --key; several secrets, each with its policy: --store",
        )
    if store is not None and store_key is None:
        raise InputError("--store needs --store-key", hint="--store-key file:PATH")
    if store is not None and (named or audit):
        raise InputError(
            "with --store, each stored secret has its own policy, and the audit log is there",
            hint="leave out --enclave, --mrenclave, --mrsigner, --accept-tcb, --hex and --audit",
        )


class Parts:
    """Joins what the options name and runs it."""

    def __init__(
        self,
        settings: Settings,
        load_trust: Callable[[], Trust],
        report: Report,
        store_key: str | None,
    ) -> None:
        from cloister.provision.store_key import load_store_key

        self._settings = settings
        self._load_trust = load_trust
        self._report = report
        self._store_key = load_store_key(store_key) if store_key else None

    def serve_store(self, database: str) -> None:
        """Release what is in a store, until stopped."""
        from cloister.attestation.trust import Authenticator
        from cloister.provision.database import open_database
        from cloister.provision.decision import ClientJudge
        from cloister.provision.store import SecretStore
        from cloister.provision.store_watcher import KEEP_SECONDS, StoreWatcher

        assert self._store_key is not None  # noqa: S101  (checked with the options)
        engine = open_database(database)
        authenticator = Authenticator(self._load_trust(), utc_now)
        judge = ClientJudge((), authenticator)
        watcher = StoreWatcher(
            store=SecretStore(engine),
            key=self._store_key,
            judge=judge,
            on_failure=self._report.failed,
            keep_seconds=2 * self._settings.limits.client_timeout + KEEP_SECONDS,
        )
        watcher.reload()
        try:
            self._run(judge, authenticator, engine=engine, watcher=watcher)
        finally:
            watcher.close()

    def serve_one(self, secret: Secret, audit: str | None) -> None:
        """Release one secret, until stopped; then wipe it."""
        from cloister.attestation.trust import Authenticator
        from cloister.provision.database import open_database
        from cloister.provision.decision import ClientJudge

        try:
            authenticator = Authenticator(self._load_trust(), utc_now)
            judge = ClientJudge([secret], authenticator)
            if audit and self._store_key is None:
                click.echo(
                    "note: without --store-key the audit log is not sealed: whoever can write to"
                    " it can make another one",
                    err=True,
                )
            self._run(judge, authenticator, engine=open_database(audit) if audit else None)
        finally:
            secret.wipe()

    def _run(self, judge: ClientJudge, authenticator: Authenticator, **parts: Any) -> None:
        from cloister.provision.service import Service

        self._report.introduce(judge.secrets, authenticator.trust)
        service = Service(
            self._settings,
            judge,
            authenticator,
            load_trust=self._load_trust,
            observer=self._report,
            clock=utc_now,
            store_key=self._store_key,
            **parts,
        )
        for number in heeded(STOPPING):
            signal.signal(number, lambda *_: service.stop())
        signal.signal(signal.SIGHUP, lambda *_: service.reload())
        signal.set_wakeup_fd(service.wakes_at(), warn_on_full_buffer=False)
        service.run()


class Report:
    """Prints what happens, for people or as one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._introduction: dict[str, Any] = {}

    def introduce(self, secrets: Sequence[Secret], trust: Trust) -> None:
        """Remember what is to be said when the server has started."""
        self._introduction = {
            "secrets": {secret.name: secret.policy.describe() for secret in secrets},
            "roots": [
                f"{'SIMULATED: ' if anchor.simulated else ''}{anchor.name},"
                f" SHA-256 {anchor.fingerprint}"
                for anchor in trust.anchors
            ],
        }

    def started(self, host: str, port: int, admin: tuple[str, int] | None) -> None:
        """Print what is released, to whom, and where."""
        secrets, roots = self._introduction["secrets"], self._introduction["roots"]
        lines = [f"releases {name} to: {accepts}" for name, accepts in secrets.items()]
        lines = lines or ["releases nothing yet: the store has no secret (cloister secret put)"]
        lines += [f"on platforms under: {root}" for root in roots]
        lines += [f"metrics and health on {admin[0]}:{admin[1]}"] if admin else []
        lines += [f"listening on {host}:{port}"]
        event = {"event": "listening", "host": host, "port": port, "admin": admin}
        self._print(event | self._introduction, lines)

    def decided(self, decision: Decision, record: AuditRecord | None) -> None:
        """Print a decision and its place in the audit log."""
        if self._as_json:
            event = {"event": "decision", **decision.to_dict()}
            if record is not None:
                event["audit"] = {"sequence": record.sequence, "hash": record.hash}
            self._print(event, [])
        else:
            number = f" (audit record {record.sequence})" if record is not None else ""
            self._print({}, [decision.to_line() + number])

    def failed(self, error: CloisterError) -> None:
        """Print a failure that concerns no client."""
        self._print({"event": "failure", "reason": error.message}, [f"failure: {error.message}"])

    def stopped(self, releases: int) -> None:
        """Print how it ended."""
        event = {"event": "stopped", "releases": releases}
        try:
            self._print(event, [f"stopped: {releases} released"])
        except OSError:
            forget_output()
            raise

    def _print(self, event: dict[str, Any], lines: list[str]) -> None:
        text = json.dumps(event) if self._as_json else "\n".join(lines)
        # One write a report, so that threads do not mix their lines.
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _identity_policy(
    enclaves: tuple[Path, ...],
    mrenclaves: tuple[str, ...],
    signer: tuple[str | None, int | None, int | None],
    statuses: tuple[str, ...],
) -> Policy:
    from cloister.attestation.policy import TcbStatus, all_of, any_of
    from cloister.errors import InputError

    identities = [*map(_built_enclave, enclaves), *_measurements(mrenclaves)]
    identities += _signer_policy(*signer)
    if not identities:
        raise InputError(
            "no enclave is named, so nobody could get the key",
            hint="name the built enclave (--enclave APP) or its measurement (--mrenclave HEX)",
        )
    identity = identities[0] if len(identities) == 1 else any_of(*identities)
    return all_of(identity, TcbStatus("UpToDate", *statuses))


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


def read_secret(argument: str, policy: Policy, *, as_hex: bool) -> Secret:
    """Return the wrap key of ``[NAME=]FILE``, as raw bytes or in Graphene's form."""
    import re

    from cloister.encrypted.keys import read_wrap_key
    from cloister.provision.decision import Secret

    match = re.fullmatch(r"([A-Za-z0-9_.-]+)=(.+)", argument)
    name, path = (match[1], match[2]) if match else ("default", argument)
    key = read_wrap_key(path)
    return Secret(name, bytearray(key.hex().encode() + b"\0" if as_hex else key), policy)
