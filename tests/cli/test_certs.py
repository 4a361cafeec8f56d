"""``cloister certs``: certificates that OpenSSL accepts, private keys that stay private."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from cloister.cli.main import run


def openssl(*arguments: str | Path) -> str:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_openssl_accepts_the_pair_under_its_ca(tmp_path: Path) -> None:
    target = tmp_path / "new" / "certs"
    assert run(["certs", "new", str(target), "--host", "a.example", "--host", "192.0.2.1"]) == 0
    for option, name in (("-verify_hostname", "a.example"), ("-verify_ip", "192.0.2.1")):
        printed = openssl(
            "verify", "-x509_strict", "-purpose", "sslserver", option, name,
            "-CAfile", target / "ca.crt", target / "server.crt",
        )  # fmt: skip
        assert "OK" in printed
    of_key = openssl("pkey", "-in", target / "server.key", "-pubout")
    assert of_key == openssl("x509", "-in", target / "server.crt", "-noout", "-pubkey")


def test_the_ca_key_is_not_kept_and_the_servers_is_private(tmp_path: Path) -> None:
    assert run(["certs", "new", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"ca.crt", "server.crt", "server.key"}
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_nothing_is_overwritten(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert run(["certs", "new", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    assert "hint:" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["ü.example", ""])
def test_names_that_no_certificate_can_carry(tmp_path: Path, host: str) -> None:
    assert run(["certs", "new", str(tmp_path / "certs"), "--host", host]) == 2
    assert not (tmp_path / "certs").exists()
