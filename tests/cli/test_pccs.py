"""``cloister pccs`` as a process: a quote is verified with what it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.main import run
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform

Start = Callable[..., SimulatedEnclave]


@pytest.fixture
def pccs() -> Iterator[Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        command = [sys.executable, "-m", "cloister", "pccs", "--listen", "localhost:0", "--json"]
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        running.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def files(start_enclave: Start, tmp_path: Path) -> Path:
    platform = SimulatedPlatform.of_this_machine()
    (tmp_path / "quote").write_bytes(start_enclave(platform).quote(bytes(64)))
    (tmp_path / "root.pem").write_text(platform.trust_anchor().certificate_pem)
    return tmp_path


def verify(files: Path, port: int) -> int:
    arguments = ["quote", "verify", str(files / "quote"), "--root", str(files / "root.pem")]
    return run([*arguments, "--pccs", f"http://localhost:{port}"])


def test_a_good_day(
    pccs: Callable[..., Any], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, announced = pccs("--simulated")
    assert announced["simulated"] is True
    assert verify(files, announced["port"]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    output = files / "collateral.json"
    arguments = ["quote", "collateral", str(files / "quote"), str(output)]
    arguments += ["--root", str(files / "root.pem")]
    assert run([*arguments, "--pccs", f"http://localhost:{announced['port']}"]) == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    offline = ["quote", "verify", str(files / "quote"), "--root", str(files / "root.pem")]
    assert run([*offline, "--collateral", str(output)]) == 0


def test_a_bad_day(
    pccs: Callable[..., Any], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, announced = pccs("--simulated", "--tcb-status", "OutOfDate", "--advisory", "INTEL-SA-1")
    assert verify(files, announced["port"]) == 3
    assert "OutOfDate (INTEL-SA-1)" in capsys.readouterr().err


def test_a_rehearsed_bundle(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(files / "bad.json")
    assert run(["platform", "export", bundle, "--revoke-pck"]) == 0
    assert run(["quote", "verify", str(files / "quote"), "--trust-simulated", bundle]) == 3
    assert "revocation list" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--simulated", "--upstream", "intel"],
        ["--simulated", "--tcb-status", "Splendid"],
        ["--simulated", "--cert", __file__],
        ["--simulated", "--listen", "nowhere"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pccs", *arguments]) == 2
    assert "cloister: error:" in capsys.readouterr().err
