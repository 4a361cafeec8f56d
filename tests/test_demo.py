"""The demonstration is the acceptance test of the whole workflow: run it as a user does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def demo(
    tmp_path_factory: pytest.TempPathFactory, hash_cache: Path
) -> tuple[dict[str, Any], str, Path]:
    """Outcome, what was shown, and the directory of the roles."""
    keep = tmp_path_factory.mktemp("demo") / "kept"
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "demo", "--json", "--keep", str(keep)],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(hash_cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, keep


@pytest.mark.timeout(300)
def test_the_decrypted_answer_is_the_native_one(demo: tuple[dict[str, Any], str, Path]) -> None:
    outcome, _, _ = demo
    assert len(outcome["native"]) == 5
    assert outcome["decrypted"] == outcome["native"]
    assert "cat" in outcome["native"][0]
    percentages = [float(re.findall(r"([\d.]+) %$", line)[0]) for line in outcome["decrypted"]]
    assert percentages == sorted(percentages, reverse=True)
    assert 0 < sum(percentages) <= 100


def test_every_attack_fails_for_its_own_reason(demo: tuple[dict[str, Any], str, Path]) -> None:
    model, program, impostor = [attack["refusal"] for attack in demo[0]["attacks"]]
    assert "refused: read of file:encrypted/model.pt" in model
    assert "tampered: read of file:pytorchexample.py" in program
    assert "REFUSED" in impostor
    assert "MRENCLAVE" in impostor
    assert all("\n" not in line for line in (model, program, impostor))


def test_every_step_names_its_role_and_what_is_simulated(
    demo: tuple[dict[str, Any], str, Path],
) -> None:
    outcome, shown, _ = demo
    roles = {line.split()[0] for line in shown.splitlines() if re.search(r"\d s$", line)}
    assert roles == {"owner", "builder", "platform", "attacker"}
    assert "SIMULATED" in shown
    assert outcome["mrenclave"] in shown


def test_the_platform_never_holds_plaintext_or_keys(
    demo: tuple[dict[str, Any], str, Path],
) -> None:
    _, _, kept = demo
    owner, platform = kept / "owner", kept / "platform"
    secrets = {
        "wrap key": (owner / "wrap-key").read_bytes(),
        "photograph": (owner / "plaintext" / "input.jpg").read_bytes()[1000:1100],
        "model": (owner / "plaintext" / "model.pt").read_bytes()[5000:5100],
        "answer": (owner / "plaintext" / "result.txt").read_bytes()[:40],
    }
    names = sorted(str(p.relative_to(platform)) for p in platform.rglob("*") if p.is_file())
    assert names == [
        "certs/ca.crt",
        "encrypted/classes.txt",
        "encrypted/input.jpg",
        "encrypted/model.pt",
        "encrypted/result.txt",
        "networks.py",
        "platform.json",
        "pytorch.index",
        "pytorch.manifest.sgx",
        "pytorch.sig",
        "pytorchexample.py",
    ]
    for path in platform.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [name for name, secret in secrets.items() if secret in content], path
