"""``cloister quote`` as a person uses it, on real quotes and on simulated ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.main import run
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform

QUOTES = Path(__file__).resolve().parent.parent / "data" / "quotes"
SGX = str(QUOTES / "sgx_quote")
COLLATERAL = ["--collateral", str(QUOTES / "sgx_quote_collateral.json"), "--at", "2025-06-20"]
STATUS = ["--accept-tcb", "ConfigurationAndSWHardeningNeeded"]
MRENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
Start = Callable[..., SimulatedEnclave]


def test_show_says_that_nothing_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quote", "show", SGX]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("NOT VERIFIED")
    assert f"mr_enclave: {MRENCLAVE}" in printed
    assert "SIMULATED" not in printed


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quote", "show", "--json", str(QUOTES / "tdx_quote")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["verified"] is False
    assert shown["tee"] == "TDX"
    assert shown["report"]["mr_td"].startswith("91eb2b44")


def test_show_says_simulated(
    simulated: SimulatedPlatform,
    start_enclave: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "quote").write_bytes(start_enclave(simulated).quote(bytes(64)))
    assert run(["quote", "show", str(tmp_path / "quote")]) == 0
    assert "SIMULATED" in capsys.readouterr().out


def test_a_real_quote_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quote", "verify", SGX, *COLLATERAL, *STATUS]) == 0
    assert capsys.readouterr().out.startswith("ACCEPTED\n")


def test_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO(Path(SGX).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
    assert run(["quote", "verify", "-", *COLLATERAL, *STATUS, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["accepted"] is True
    assert shown["evidence"]["report"]["mr_enclave"] == MRENCLAVE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*COLLATERAL], "TCB status"),
        ([*COLLATERAL[:2], *STATUS], "out of date"),
        ([*COLLATERAL[:2], *STATUS, "--at", "2025-06-18T00:00:00Z"], "future"),
        ([*COLLATERAL[:2], *STATUS, "--at", "1752919279"], "out of date"),
    ],
)
def test_refusals_exit_with_3_and_say_why(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quote", "verify", SGX, *arguments]) == 3
    printed = capsys.readouterr()
    assert printed.out.startswith("REFUSED")
    assert words in printed.err
    assert "hint:" in printed.err


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (f'mrenclave = "{MRENCLAVE}"', 3),
        (f'mrenclave = "{MRENCLAVE}"\ntcb_status = ["ConfigurationAndSWHardeningNeeded"]', 0),
        (f'mrenclave = "{"0" * 64}"\ntcb_status = ["ConfigurationAndSWHardeningNeeded"]', 3),
        ("", 2),
    ],
)
def test_with_a_policy(tmp_path: Path, policy: str, code: int) -> None:
    (tmp_path / "policy.toml").write_text(f"version = 1\n{policy}\n")
    arguments = ["quote", "verify", SGX, *COLLATERAL, "--policy", str(tmp_path / "policy.toml")]
    assert run(arguments) == code


def test_another_root_does_not_vouch_for_a_real_quote(
    tmp_path: Path, simulated: SimulatedPlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root.pem").write_text(simulated.trust_anchor().certificate_pem)
    root = ["--root", str(tmp_path / "root.pem")]
    assert run(["quote", "verify", SGX, *COLLATERAL, *STATUS, *root]) == 3
    assert "another root" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["--trust-simulated", "--root"])
def test_a_simulated_quote_is_verified_only_where_its_root_is_named(
    named: str,
    simulated: SimulatedPlatform,
    start_enclave: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = simulated.export()
    files: dict[str, Any] = {
        "quote": start_enclave(simulated).quote(bytes(64)),
        "bundle": bundle.to_json().encode(),
        "root": bundle.anchor.certificate_pem.encode(),
        "collateral": bundle.collateral.to_json().encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    quote, collateral = str(tmp_path / "quote"), ["--collateral", str(tmp_path / "collateral")]
    assert run(["quote", "verify", quote, *collateral]) == 3
    assert "SIMULATED" in capsys.readouterr().err
    trust = {
        "--trust-simulated": ["--trust-simulated", str(tmp_path / "bundle")],
        "--root": ["--root", str(tmp_path / "root"), *collateral],
    }[named]
    assert run(["quote", "verify", quote, *trust]) == 0
    assert "SIMULATED" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no platform is trusted"),
        ([*COLLATERAL[:2], "--at", "soon"], "not a time"),
        ([*COLLATERAL[:2], "--at", "99999999999999"], "not a time"),
        ([*COLLATERAL, "--accept-tcb", "Revoked"], "never acceptable"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quote", "verify", SGX, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_bytes_that_are_no_quote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"\x03\x00", Path(SGX).read_bytes() + b"\0", bytes(100_000)):
        (tmp_path / "quote").write_bytes(content)
        assert run(["quote", "show", str(tmp_path / "quote")]) == 3
        assert run(["quote", "verify", str(tmp_path / "quote"), *COLLATERAL]) == 3
    assert "Traceback" not in capsys.readouterr().err
