"""The tutorial's own commands, taken from its text and run in their order in one shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MADE_BY_HAND = shutil.ignore_patterns(  # by somebody who followed the tutorial in the checkout
    *("pytorch-confidential", "*.pt", "*result.txt", "*.manifest", "*.sgx", "*.index", "*.sig"),
    *(
        "*.token",
        "certs",
        "files",
        "libs",
        "pf_crypt",
        "secret_prov_server_dcap",
        "enclave-key.pem",
    ),
)
# killall belongs to psmisc, which not every machine has.
PRELUDE = """
set -e -o pipefail
command -v killall > /dev/null || killall() { kill %1; }
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
"""


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The finished shell; its examples are below the directory in ``args[-1]``."""
    graphene = tmp_path_factory.mktemp("tutorial") / "graphene"
    shutil.copytree(ROOT / "examples" / "graphene", graphene, ignore=MADE_BY_HAND)
    script = PRELUDE + "".join(BLOCK.findall(TUTORIAL.read_text()))
    variables = {
        "GRAPHENE": str(graphene),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{f"XDG_{name}_HOME": f"{graphene}/xdg" for name in ("CACHE", "CONFIG", "DATA", "STATE")},
    }
    done = subprocess.run(
        ["bash", "-c", script + "wait", "tutorial", str(graphene)],
        check=False,
        cwd=graphene,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def confidential(tutorial: subprocess.CompletedProcess[str]) -> Path:
    """The directory in which the confidential run took place."""
    return Path(tutorial.args[-1]) / "Examples" / "pytorch-confidential"


def test_the_decrypted_result_is_the_native_one(confidential: Path) -> None:
    native = (confidential.parents[1] / "native-result.txt").read_text()
    assert (confidential / "plaintext" / "result.txt").read_text() == native
    assert "cat" in native.splitlines()[0]


def test_what_the_platform_holds_is_encrypted(confidential: Path) -> None:
    for name in ("input.jpg", "classes.txt", "model.pt", "result.txt"):
        encrypted = (confidential / name).read_bytes()
        assert encrypted.startswith(b"GRAFS_PF")
        assert (confidential / "plaintext" / name).read_bytes()[:64] not in encrypted


def test_both_sides_say_who_got_the_key_and_that_it_was_simulated(
    tutorial: subprocess.CompletedProcess[str],
) -> None:
    assert "RELEASED default to 127.0.0.1" in tutorial.stdout
    assert "key released by localhost:4433" in tutorial.stderr
    assert "SIMULATED" in tutorial.stdout
    assert "SIMULATED" in tutorial.stderr
