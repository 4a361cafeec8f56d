"""``cloister attest`` against a live TLS server."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.cli.main import run
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.ratls.certificate import create_identity
from cloister.ratls.client import present

Start = Callable[..., SimulatedEnclave]


@pytest.fixture
def server(simulated: SimulatedPlatform, start_enclave: Start) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    present(context, create_identity(start_enclave(simulated).quote))

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(connected, server_side=True).close()
            except OSError:
                connected.close()

    with socket.create_server(("localhost", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"localhost:{listener.getsockname()[1]}"


@pytest.fixture
def trust(simulated: SimulatedPlatform, tmp_path: Path) -> list[str]:
    (tmp_path / "bundle.json").write_text(simulated.export().to_json())
    return ["--trust-simulated", str(tmp_path / "bundle.json")]


def test_a_live_enclave_is_verified(
    server: str, trust: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["attest", server, *trust, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["accepted"] is True
    assert shown["simulated"] is True
    assert shown["checks"][0]["name"] == "key binding"


def test_another_enclave_than_the_policys_is_refused(
    server: str, trust: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'version = 1\nmrenclave = "{"0" * 64}"\n')
    assert run(["attest", server, *trust, "--policy", str(policy)]) == 3
    assert "root" in capsys.readouterr().err
    root = SimulatedPlatform(tmp_path / "simulated-platform").trust_anchor().fingerprint
    policy.write_text(f'version = 1\nroots = ["{root}"]\nmrenclave = "{"0" * 64}"\n')
    assert run(["attest", server, *trust, "--policy", str(policy)]) == 3
    assert "MRENCLAVE" in capsys.readouterr().err


def test_addresses_that_lead_nowhere(trust: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attest", "localhost", *trust]) == 2
    assert run(["attest", "localhost:1", *trust]) == 1
    assert "hint:" in capsys.readouterr().err
