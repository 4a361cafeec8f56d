"""``cloister serve``: what it refuses to start with, each with a hint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.cli.main import run


@pytest.fixture
def owner(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["certs", "new", "certs"]) == 0
    assert run(["platform", "export", "platform.json"]) == 0
    (tmp_path / "wrap-key").write_bytes(bytes(16))
    shutil.copy(data / "signing" / "app.sig", tmp_path)
    return tmp_path


COMMON = ["serve", "--cert", "certs/server.crt", "--cert-key", "certs/server.key"]
KEY = ["--key", "wrap-key"]
ENCLAVE = ["--enclave", "app"]
TRUST = ["--trust-simulated", "platform.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*KEY, *TRUST], "no enclave is named"),
        ([*KEY, *ENCLAVE], "no platform is trusted"),
        ([*KEY, *TRUST, "--enclave", "none"], "none.sig: no such file"),
        ([*KEY, *TRUST, "--mrenclave", "12"], "1 bytes, expected 32"),
        ([*KEY, *TRUST, "--mrenclave", "xy"], "not hexadecimal"),
        ([*KEY, *TRUST, "--mrsigner", "00" * 32], "belong together"),
        ([*KEY, *TRUST, *ENCLAVE, "--accept-tcb", "Revoked"], "never acceptable"),
        ([*KEY, *TRUST, *ENCLAVE, "--listen", "localhost"], "HOST:PORT"),
        ([*KEY, *TRUST, *ENCLAVE, "--listen", "192.0.2.99:0"], "cannot listen"),
        (["--key", "none", *TRUST, *ENCLAVE], "no such key file"),
        ([*KEY, *ENCLAVE, "--trust-simulated", "certs/ca.crt"], "JSON"),
    ],
)
def test_it_does_not_start_with(
    owner: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMON, *arguments]) in (2, 3)
    assert words in capsys.readouterr().err


def test_a_changed_signature_file_is_refused(owner: Path) -> None:
    changed = bytearray((owner / "app.sig").read_bytes())
    changed[960] ^= 1
    (owner / "app.sig").write_bytes(bytes(changed))
    assert run([*COMMON, *KEY, *TRUST, *ENCLAVE]) in (2, 3)
