"""Fixtures of the runtime's tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from applications import PROGRAMS, PYTHON, App


@pytest.fixture
def app(tmp_path: Path) -> App:
    """A fresh application."""
    directory = tmp_path / "app"
    directory.mkdir()
    return App(directory)


@pytest.fixture(scope="session")
def native_semantics(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, object]]:
    """What the semantics program says natively."""
    directory = tmp_path_factory.mktemp("native")
    done = subprocess.run(
        [PYTHON, str(PROGRAMS / "semantics.py")],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return lambda: result


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where fsync costs nothing, if there is one."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > 1 << 30:
        directory = shared / f"cloister-test-{os.getpid()}"
        directory.mkdir(mode=0o700)
        yield directory
        shutil.rmtree(directory)
    else:
        yield tmp_path_factory.mktemp("memory")
