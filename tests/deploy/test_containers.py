"""The commands of docs/deployment.md, *Containers*, run with a real Docker engine.

They are taken from the page and run in a copy of the checkout, as root, in place of ``sudo``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "deployment.md"
IMAGES = ("owner", "worker")
NOT_COPIED = shutil.ignore_patterns("secrets", "app", "__pycache__")
PROGRAM = """
from pathlib import Path
Path("result/out.txt").write_text(Path("data/in.txt").read_text().upper())
print("done")
"""


def blocks() -> list[str]:
    """Return the shell commands of the section, a string for each fenced block."""
    section = PAGE.read_text().split("\n## Containers\n")[1].split("\n## ")[0]
    fenced = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [block for block in fenced if not block.startswith("FROM ")]


def test_the_page_has_the_blocks_that_are_run() -> None:
    start, prepare, run = blocks()
    assert "up -d --wait key-server" in start
    assert "platform export" in prepare
    assert "secret put" in run


def has_engine() -> bool:
    if os.geteuid() != 0 or shutil.which("docker") is None:
        return False
    asked = [["docker", "info"], ["docker", "compose", "version"]]
    return all(
        subprocess.run(command, capture_output=True, check=False).returncode == 0
        for command in asked
    )


class Machine:
    """A checkout, and a shell in it that has the page's commands."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COMPOSE_PROJECT_NAME": "cloister-test",
            # The builder of the Docker Engine is told by the file's name what to leave out.
            "DOCKER_BUILDKIT": "1",
        }

    def run(self, commands: str) -> str:
        """Run commands as they are on the page; return what they printed.

        Variables that they export hold for what is run later.
        """
        for name, value in re.findall(r"^export (\w+)=(.*)$", commands, re.MULTILINE):
            self._environment[name] = value
        plain = re.sub(r"^sudo ", "", commands, flags=re.MULTILINE)
        plain = plain.replace("docker compose run --rm", "docker compose run --rm -T")
        done = subprocess.run(
            ["bash", "-euc", plain], cwd=self.tree, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if not has_engine():
        pytest.skip("needs root and a running Docker engine with Compose")
    tree = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    for changed in ("deploy", "src", "requirements"):  # what is tested is what lies here
        shutil.rmtree(tree / changed)
        shutil.copytree(ROOT / changed, tree / changed, ignore=NOT_COPIED)
    made = Machine(tree)
    for image in IMAGES:
        made.run(f"docker build -f deploy/Dockerfile --target {image} -t cloister/{image} .")
    yield made
    made.run("docker compose -f deploy/compose.yaml down -v")


@pytest.mark.long
def test_the_page_to_the_letter(machine: Machine) -> None:
    (machine.tree / "hello.py").write_text(PROGRAM)
    (machine.tree / "data").mkdir()
    (machine.tree / "data" / "in.txt").write_text("secret\n")
    (machine.tree / "result").mkdir()
    project = machine.tree / "deploy" / "app" / "project"
    start, prepare, run = blocks()

    machine.run(start)
    machine.run(prepare)
    bundle = json.loads((machine.tree / "deploy" / "secrets" / "simulated.json").read_text())
    with (project / "policy.toml").open("a") as policy:
        policy.write(f'roots = ["{bundle["root_sha256"]}"]\n')
    printed = machine.run(run)

    assert "key default released by keys.example.org:4433" in printed
    assert "\ndone\n" in printed
    assert re.search(r"RELEASED default to .* SIMULATED \(audit record 1\)", printed)
    assert (project / "decrypted" / "result" / "out.txt").read_text() == "SECRET\n"
