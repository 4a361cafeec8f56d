"""SQLite in an encrypted directory: several writers, killed in the middle, again and again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from applications import CLOISTER, KEY, PYTHON, App


@pytest.fixture
def databases(app: App) -> App:
    """An application whose working directory is encrypted."""
    (app.directory / "files").mkdir()
    app.mount("/files", "file:files", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    app.direct([PYTHON, "/programs/databases.py", "check"])
    return app


def manifest(app: App, *arguments: str) -> None:
    app.settings["loader.argv"] = json.dumps([PYTHON, "/programs/databases.py", *arguments])
    (app.directory / "app.manifest").write_text(app.text())


def write_until_killed(app: App, commits: int) -> dict[tuple[str, int], int]:
    """Kill the whole run in the middle; return the last commit that each writer told."""
    manifest(app, "write")
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=app.directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    told: dict[tuple[str, int], int] = {}
    for _ in range(commits):
        mode, writer, n = json.loads(process.stdout.readline())
        told[mode, writer] = n
    os.kill(process.pid, signal.SIGKILL)
    for line in process.stdout:  # what was told before the kill took effect
        if line.endswith("]\n"):
            mode, writer, n = json.loads(line)
            told[mode, writer] = n
    process.wait(30)
    process.stdout.close()
    return told


def kill_and_check(app: App, commits: int) -> None:
    for database in (app.directory / "files").iterdir():
        database.unlink()
    told = write_until_killed(app, commits)
    manifest(app, "check")
    done = app.cloister("run", "--mode", "direct", "app")
    for mode, (verdict, rows, torn) in json.loads(done.stdout).items():
        assert (verdict, torn) == ("ok", 0), mode
        for writer in (0, 1):
            last = told.get((mode, writer))
            # What was told as committed is there; one more may have been committed untold.
            assert last is None or last <= rows[str(writer)], (mode, writer)
    assert done.stderr == ""
    assert not [path for path in (app.directory / "files").iterdir() if plain(path)]


def plain(path: Path) -> bool:
    return path.read_bytes()[:6] == b"SQLite"


def test_a_killed_run_leaves_whole_databases(databases: App) -> None:
    kill_and_check(databases, 60)


@pytest.mark.long
@pytest.mark.parametrize("commits", [10, 35, 80, 150, 290])
def test_killed_at_other_moments(databases: App, commits: int) -> None:
    kill_and_check(databases, commits)
