"""Values that a shell or an editor lets pass, and that mean nothing here: one line, exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.main import run
from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.database import open_database

LONG = "a" * 70 + ".com"
STORE = ["--store", "keys.db"]
SECRET = "00112233445566778899aabbccddeeff"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    platform = SimulatedPlatform.of_this_machine()
    Path("platform.json").write_text(platform.export().to_json())
    Path("latin1.toml").write_bytes(b'version = 1 # caf\xe9\nmrenclave = "' + b"0" * 64 + b'"\n')
    Path("policy.toml").write_text(f'version = 1\nmrenclave = "{"0" * 64}"\n')
    Path("two.key").write_text("PRIMARY0123\nSECONDARY456\n")
    Path("latin1.key").write_bytes(b"PRIMARY\xe9")
    Path("key").write_bytes(bytes(16))
    Path("quote").write_bytes(bytes(500))
    assert run(["secret", "new-key", "store.key"]) == 0
    assert run(["certs", "new", "certs"]) == 0
    return tmp_path


ATTEST = ["attest", "--trust-simulated", "platform.json"]
SERVE = [
    *("serve", "--key", "key", "--mrenclave", "0" * 64, "--trust-simulated", "platform.json"),
    *("--cert", "certs/server.crt", "--cert-key", "certs/server.key", "--listen", "localhost:0"),
]
PUT = ["secret", "put", "x", "key", *STORE, "--store-key", "file:store.key"]
UPSTREAM = ["pccs", "--upstream", "http://localhost:1", "--listen", "localhost:0"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([*ATTEST, "localhost:1", "--timeout", "-1"], "--timeout"),
        ([*ATTEST, "localhost:1", "--timeout", "nan"], "--timeout"),
        ([*SERVE, "--client-timeout", "nan"], "--client-timeout"),
        ([*SERVE, "--rate", "nan"], "--rate"),
        ([*SERVE, "--rate", "inf"], "--rate"),
        ([*SERVE, "--listen", "..:1"], "cannot listen on ..:1"),
        ([*SERVE, "--admin", "..:1"], "cannot listen on ..:1"),
        ([*PUT, "--policy", "latin1.toml"], "latin1.toml: not valid TOML"),
        ([*UPSTREAM, "--api-key", "two.key"], "two.key: not an API key"),
        ([*UPSTREAM, "--api-key", "latin1.key"], "latin1.key: not an API key"),
        ([*UPSTREAM, "--revoke-pck"], "only the SIMULATED platform"),
        (["audit", "show", *STORE, "--after", "99999999999999999999"], "--after"),
        (["audit", "show", *STORE], "there is no such database"),
        (["audit", "verify", *STORE], "there is no such database"),
        (["secret", "list", *STORE], "there is no such database"),
        (["secret", "remove", "x", *STORE, "--store-key", "file:store.key"], "no such database"),
        (["secret", "list", "--store", "postgresql://u:sekrit@h:abc/db"], "not an address"),
        (["secret", "list", "--store", "foo bar://u:sekrit@h/db"], "not an address"),
        (["secret", "list", *STORE[:1], "x/y.db"], "there is no such database"),
        (["secret", "put", "x", SECRET, *PUT[4:], "--policy", "policy.toml"], "FILE: No such"),
        ([*PUT[:-1], SECRET, "--policy", "policy.toml"], "--store-key: hex digits"),
        ([*PUT[:-1], f"file:{SECRET}", "--policy", "policy.toml"], "--store-key: hex digits"),
        (["audit", "verify", *STORE, "--known", "abc"], "--known: not a hash"),
        (["quote", "verify", "quote", "--pccs", "http://x", "--ias-nonce", "00"], "--ias-report"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_it_is_told_in_one_line(
    command: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(command) == 2
    said = capsys.readouterr().err
    assert words in said
    assert not any(
        secret in said for secret in ("sekrit", SECRET, "PRIMARY", "SECONDARY", "Traceback")
    )
    assert not (folder / "keys.db").exists()


@pytest.mark.parametrize("address", ["..:443", f"{LONG}:443"])
def test_a_host_that_cannot_be_a_name(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ATTEST, address]) == 1
    assert capsys.readouterr().err.startswith(f"cloister: error: {address}: no such name")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("version = true", "version: expected a number"),
        ("version = 1\nminimum_tcb_date = 12:00:00", "minimum_tcb_date: expected a date"),
        ("version = 1\nminimum_tcb_date = '2024-03-13'", "minimum_tcb_date: expected a date"),
    ],
)
def test_values_of_a_policy(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.toml").write_text(f'{line}\nmrenclave = "{"0" * 64}"\n')
    assert run([*PUT, "--policy", "odd.toml"]) == 2
    assert words in capsys.readouterr().err


def test_a_record_of_any_content_is_shown_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The database may have been written by anybody."""
    assert run([*PUT, "--policy", "policy.toml"]) == 0
    odd = [{}, {"peer": "\x1b[31mred", "reason": "two\nlines", "secret": "x"}]
    with open_database("keys.db").begin() as connection:
        for number, record in enumerate(odd, start=1):
            connection.exec_driver_sql(
                "INSERT INTO audit VALUES (?, ?, ?, NULL)", (number, json.dumps(record), "0" * 64)
            )
    capsys.readouterr()
    assert run(["audit", "show", *STORE]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(odd)
    assert "\x1b" not in shown


def test_a_known_hash_in_capital_letters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PUT, "--policy", "policy.toml"]) == 0
    assert run(["audit", "verify", *STORE, "--json"]) == 0
    head = json.loads(capsys.readouterr().out.splitlines()[-1])["head"]
    assert run(["audit", "verify", *STORE, "--known", head.upper()]) == 0
