"""``cloister platform``: it says SIMULATED, and exports what an owner needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attestation import SimulatedBundle
from cloister.cli.main import run


def test_show_says_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["platform", "show"]) == 0
    assert "SIMULATED" in capsys.readouterr().out


def test_show_as_json_names_the_root_that_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["platform", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["simulated"] is True
    assert run(["platform", "export", str(tmp_path / "bundle.json")]) == 0
    bundle = SimulatedBundle.from_json((tmp_path / "bundle.json").read_text())
    assert bundle.anchor.fingerprint == shown["root_sha256"]
    assert "SIMULATED" in capsys.readouterr().err


def test_export_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["platform", "export", "-"]) == 0
    assert SimulatedBundle.from_json(capsys.readouterr().out).anchor.simulated
