"""Fixtures of the runtime's tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
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
