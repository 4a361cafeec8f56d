"""Every command that reports something reports it as JSON where it is asked to."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from applications import SIGNING_KEY
from cloister.cli.main import LazyGroup, run
from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.audit import AuditLog
from cloister.provision.database import open_database
from cloister.provision.decision import Decision, Outcome
from signing import IMAGE, PARAMETERS, signed

OWN = "tested with the command itself"
WITHOUT = {
    "demo": f"{OWN}: it runs an example",
    "run": "standard output is the program's",
    "ratls": "leaves files, then becomes another program",
    "manifest render": "its output is the manifest",
    "manifest convert": "its output is the manifest",
    "platform export": "its output is JSON",
    "quote collateral": "its output is JSON",
    "completion": "its output is a script",
    "report": "its output is a page; its input is JSON that can be used instead",
    "init": f"{OWN}: it runs a script first",
    "try": f"{OWN}: it runs a project",
    "attest": f"{OWN}: it needs a server",
    "serve": f"{OWN}: it is one",
    "pccs": f"{OWN}: it is one",
}
"""Commands that are not in the table below, and why."""

MANIFEST = """\
libos.entrypoint = "/bin/cat"
sgx.enclave_size = "16M"
sgx.max_threads = 1
sgx.trusted_files = ["file:plain.txt"]
"""
BUILD = ["--key", str(SIGNING_KEY)]
STORE = ["--store", "keys.db"]
REPORTING: dict[str, list[str]] = {
    "key new": ["new-key"],
    "key show": ["wrap-key"],
    "key fingerprint": ["wrap-key", "other-key"],
    "encrypt": ["-k", "wrap-key", "plain.txt", "again.pf"],
    "decrypt": ["-k", "wrap-key", "plain.pf", "plain.again"],
    "inspect": ["-k", "wrap-key", "plain.pf"],
    "verify": ["-k", "wrap-key", "plain.pf"],
    "recover": ["-k", "wrap-key", "plain.pf"],
    "rekey": ["-k", "wrap-key", "--new-key", "other-key", "rekeyed.pf"],
    "certs new": ["certs"],
    "build": [*BUILD, "app.manifest.template"],
    "sign": [*BUILD, "-m", "app.manifest", "-o", "signed.sgx", "-s", "signed.sig"],
    "signing-key new": ["signing.pem"],
    "signing-key show": [str(SIGNING_KEY)],
    "sigstruct show": ["app.sig"],
    "sigstruct verify": ["app.sig"],
    "sigstruct attach": [
        "app.tbs", "--public-key", "public.pem", "--signature", "signature", "-o", "attached.sig",
    ],
    "measure": ["app.manifest.template", "--against", "app"],
    "trace": ["-o", "trace.json", "--test-key", "--", "/bin/cat", "plain.txt"],
    "manifest check": ["app.manifest.template"],
    "manifest explain": ["app.manifest.template"],
    "platform show": [],
    "quote show": ["quote"],
    "quote verify": ["quote", "--trust-simulated", "platform.json"],
    "secret new-key": ["new-store.key"],
    "secret put": [
        "b", "wrap-key", "--policy", "policy.toml", *STORE, "--store-key", "file:store.key",
    ],
    "secret list": STORE,
    "secret remove": ["a", *STORE, "--store-key", "file:store.key"],
    "audit show": ["--store", "audit.db"],
    "audit verify": ["--store", "audit.db"],
    "doctor": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in which every command of the table finds what it needs."""
    directory = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(directory / name.lower()))
        patch.chdir(directory)
        prepare(directory)
        yield directory


def prepare(directory: Path) -> None:
    (directory / "plain.txt").write_text("text\n")
    (directory / "app.manifest.template").write_text(MANIFEST)
    (directory / "policy.toml").write_text(f'version = 1\nmrenclave = "{"1" * 64}"\n')
    platform = SimulatedPlatform.of_this_machine()
    enclave = platform.start(
        manifest=b"m", sigstruct=signed(b"m").pack(), image=IMAGE, **PARAMETERS
    )
    (directory / "quote").write_bytes(enclave.quote(bytes(64)))
    for command in (
        ["key", "new", "wrap-key"],
        ["key", "new", "other-key"],
        ["encrypt", "-k", "wrap-key", "plain.txt", "plain.pf"],
        ["encrypt", "-k", "wrap-key", "plain.txt", "rekeyed.pf"],
        ["build", *BUILD, "app.manifest.template"],
        ["platform", "export", "platform.json"],
        ["secret", "new-key", "store.key"],
        ["secret", "put", "a", "wrap-key", "--policy", "policy.toml", *STORE,
         "--store-key", "file:store.key"],
    ):  # fmt: skip
        assert run(command) == 0, command
    record_a_decision()
    sign_elsewhere(directory)


@pytest.mark.parametrize("command", REPORTING)
def test_a_report_as_json(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    capsys.readouterr()
    assert run([*command.split(), "--json", *REPORTING[command]]) == 0
    printed = capsys.readouterr().out
    if command == "trace":  # the program's output and the proposal have a stream each
        printed = (folder / "trace.json").read_text()
    assert json.loads(printed), printed


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("decrypt", ["plain.pf", "out"]),
        ("verify", ["plain.pf"]),
        ("rekey", ["--new-key", "other-key", "plain.pf"]),
    ],
)
def test_a_failure_is_in_the_report_too(
    command: str,
    more: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "third-key").write_bytes(b"3" * 16)
    capsys.readouterr()
    assert run([command, "--json", "-k", "third-key", *more]) == 3
    printed = capsys.readouterr()
    (shown,) = json.loads(printed.out)
    reason = shown["reason" if command == "verify" else "error"]
    assert "another key" in reason
    assert reason in printed.err


def record_a_decision() -> None:
    AuditLog(open_database("audit.db"), None).append(
        [
            Decision(
                time=datetime.datetime(2026, 5, 1, tzinfo=datetime.timezone.utc),
                peer="192.0.2.1:1",
                outcome=Outcome.RELEASED,
                secret="a",
                reason="every check passed",
            )
        ]
    )


def sign_elsewhere(directory: Path) -> None:
    """Make what ``sigstruct attach`` puts together: as if the key were in an HSM."""
    key = load_pem_private_key(SIGNING_KEY.read_bytes(), password=None)
    assert isinstance(key, RSAPrivateKey)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "public.pem").write_bytes(public)
    to_sign = ["--to-be-signed", "app.tbs", "--public-key", "public.pem"]
    assert run(["sign", "-m", "app.manifest", "-o", "unsigned.sgx", *to_sign]) == 0
    signature = key.sign((directory / "app.tbs").read_bytes(), PKCS1v15(), SHA256())
    (directory / "signature").write_bytes(signature)


def commands(group: click.Group, above: str = "") -> Iterator[str]:
    """Yield every command that is no group, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}"


def test_no_command_is_forgotten() -> None:
    known = {*REPORTING, *WITHOUT}
    found = set(commands(LazyGroup("cloister")))
    assert found - known == set(), "give it --json and a line in REPORTING, or one in WITHOUT"
    assert known - found == set()
