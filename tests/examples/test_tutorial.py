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


@pytest.mark.timeout(240)
def test_the_tutorials_commands_do_what_its_text_says(tmp_path: Path, hash_cache: Path) -> None:
    """One test, since the key server has the tutorial's own port."""
    graphene = tmp_path / "graphene"
    shutil.copytree(ROOT / "examples" / "graphene", graphene, ignore=MADE_BY_HAND)
    script = PRELUDE + "".join(BLOCK.findall(TUTORIAL.read_text()))
    variables = {
        "GRAPHENE": str(graphene),
        "XDG_CACHE_HOME": str(hash_cache),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", script + "wait"],
        check=False,
        cwd=graphene,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "RELEASED default to 127.0.0.1" in done.stdout
    assert "SIMULATED" in done.stdout
    assert "SIMULATED" in done.stderr
    assert "released by localhost:4433" in done.stderr

    native = (graphene / "native-result.txt").read_text()
    assert "cat" in native.splitlines()[0]
    platform = graphene / "Examples" / "pytorch-confidential"
    plaintext = platform / "plaintext"
    assert (plaintext / "result.txt").read_text() == native
    for name in ("input.jpg", "classes.txt", "model.pt", "result.txt"):
        encrypted = (platform / name).read_bytes()
        assert encrypted.startswith(b"GRAFS_PF")
        assert (plaintext / name).read_bytes()[:64] not in encrypted
