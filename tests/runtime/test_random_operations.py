"""Random sequences of file operations print in the sandbox what they print natively."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from applications import KEY, PROGRAMS, PYTHON, App

OPERATIONS = 300
SCRIPT = """\
for seed in {seeds}; do
    mkdir $seed; cd $seed
    {python} /programs/random_operations.py $seed {operations}
    echo "code $?"; cd ..
done
"""


def natively(directory: Path, seed: int) -> str:
    directory.mkdir()
    return subprocess.run(
        [PYTHON, str(PROGRAMS / "random_operations.py"), str(seed), str(OPERATIONS)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def compare(memory: Path, kind: str, seeds: Sequence[int]) -> None:
    app = App(memory / f"random-{kind}-{seeds[0]}")
    (app.directory / "files").mkdir(parents=True)
    app.mount("/files", "file:files", kind)
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    numbers = " ".join(map(str, seeds))
    script = SCRIPT.format(seeds=numbers, python=PYTHON, operations=OPERATIONS)
    done = app.direct(["/bin/sh", "-c", script])
    printed = done.stdout.split("code 0\n")
    assert len(printed) == len(seeds) + 1
    for seed, text in zip(seeds, printed, strict=False):
        assert text == natively(memory / f"native-{kind}-{seed}", seed), f"seed {seed}"


@pytest.mark.parametrize("kind", ["chroot", "encrypted"])
def test_some(memory: Path, kind: str) -> None:
    compare(memory, kind, range(8))


@pytest.mark.long
@pytest.mark.parametrize("start", range(1000, 1100, 20))
@pytest.mark.parametrize("kind", ["chroot", "encrypted"])
def test_many(memory: Path, kind: str, start: int) -> None:
    compare(memory, kind, range(start, start + 20))
