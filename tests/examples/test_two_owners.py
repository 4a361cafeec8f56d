"""Two owners: each key opens its owner's files only, and both owners must agree."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two-owners"
CLOISTER = (sys.executable, "-m", "cloister")


def free_port() -> str:
    with socket.create_server(("localhost", 0)) as free:
        return str(free.getsockname()[1])


def cloister(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLOISTER, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, hash_cache: Path) -> tuple[Path, str]:
    """The directory of the roles after a run, and what the run printed."""
    home = tmp_path_factory.mktemp("two-owners")
    done = subprocess.run(
        [str(EXAMPLE / "run.sh"), str(home / "work")],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(hash_cache),
            "MODEL_PORT": free_port(),
            "DATA_PORT": free_port(),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "work", done.stdout


@pytest.mark.timeout(250)
def test_the_data_owner_gets_the_risks_of_all_patients(ran: tuple[Path, str]) -> None:
    _, printed = ran
    table = printed[printed.index("patient,risk") :]
    risks = {row["patient"]: float(row["risk"]) for row in csv.DictReader(io.StringIO(table))}
    assert set(risks) == {"Ada", "Bruno", "Clara", "Dmitri", "Elif"}
    assert risks["Bruno"] > 0.5 > risks["Elif"]


def test_each_server_released_its_own_key_to_the_same_enclave(ran: tuple[Path, str]) -> None:
    work, _ = ran
    model = (work / "model-owner" / "serve.log").read_text()
    data = (work / "data-owner" / "serve.log").read_text()
    assert "RELEASED model to" in model
    assert "RELEASED data to" in data
    measurements = {
        line.partition("MRENCLAVE ")[2][:64]
        for line in (model + data).splitlines()
        if "RELEASED" in line
    }
    assert len(measurements) == 1
    for owner, database in (("model-owner", "keys.db"), ("data-owner", "audit.db")):
        assert cloister("audit", "verify", "--store", database, cwd=work / owner).returncode == 0


def test_neither_key_opens_the_others_files(ran: tuple[Path, str]) -> None:
    work, _ = ran
    for owner, path, expected in (
        ("model-owner", "model/model.pt", 0),
        ("model-owner", "data/patients.csv", 3),
        ("model-owner", "data/risk.csv", 3),
        ("data-owner", "data/risk.csv", 0),
        ("data-owner", "model/model.pt", 3),
    ):
        key = str(work / owner / "wrap-key")
        done = cloister("verify", "-k", key, path, cwd=work / "platform")
        assert done.returncode == expected, (owner, path, done.stderr)


def test_keys_and_plaintext_stay_with_their_owners(ran: tuple[Path, str]) -> None:
    work, _ = ran
    keys = {
        owner: (work / owner / "wrap-key").read_bytes() for owner in ("model-owner", "data-owner")
    }
    for role in ("model-owner", "data-owner", "builder", "platform"):
        for path in (work / role).rglob("*"):
            if not path.is_file():
                continue
            content = path.read_bytes()
            for owner, key in keys.items():
                if role != owner:
                    assert key not in content, path
                    assert key.hex().encode() not in content, path
            if role != "data-owner":
                assert b"Dmitri" not in content, path


def test_without_one_owner_nothing_runs(
    ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _ = ran  # both servers have stopped with the script
    (work / "platform" / "data" / "risk.csv").unlink(missing_ok=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(work.parent / "data"))
    done = cloister("run", "score", cwd=work / "platform")
    assert done.returncode == 1
    assert "no key server released the key model: localhost:" in done.stderr
    assert not (work / "platform" / "data" / "risk.csv").exists()


def test_it_never_overwrites(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(EXAMPLE / "run.sh"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "hint: rm -r" in done.stderr
