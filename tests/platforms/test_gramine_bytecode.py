"""Compiled Python modules that Gramine has Python compile again; made by Python itself."""

from __future__ import annotations

import py_compile
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.manifest.parse import ManifestText
from cloister.platforms.gramine.bytecode import notes_on

Mode = py_compile.PycInvalidationMode


def notes(base: Path, *trusted: str) -> list[str]:
    listed = ", ".join(f'"file:{uri}"' for uri in trusted)
    text = f'libos.entrypoint = "/p"\nfs.mounts = []\nsgx.trusted_files = [{listed}]'
    return notes_on(ManifestText(text, "m").manifest, base)


def module(directory: Path, mode: Mode | None) -> None:
    directory.mkdir(parents=True)
    source = directory / "module.py"
    source.write_text("x = 1\n")
    if mode is not None:
        py_compile.compile(str(source), invalidation_mode=mode)


@pytest.mark.parametrize(
    ("mode", "is_told"),
    [
        (Mode.TIMESTAMP, True),
        (Mode.CHECKED_HASH, False),
        (Mode.UNCHECKED_HASH, False),
        (None, False),  # never compiled: it costs the same everywhere
    ],
)
def test_only_modules_that_are_judged_by_time_are_told(
    tmp_path: Path, mode: Mode | None, is_told: bool
) -> None:
    module(tmp_path / "lib" / "package", mode)
    (told,) = notes(tmp_path, "lib/") or [""]
    assert ("compiles its modules anew" in told) == is_told


def test_an_installation_is_named_once_and_as_a_whole(tmp_path: Path) -> None:
    root = tmp_path / "lib" / "python3.11"
    for name in ("json", "site-packages/torch"):
        module(root / name, Mode.TIMESTAMP)
    (told,) = notes(
        tmp_path, "lib/python3.11/json/", "lib/python3.11/site-packages/", "no-such/", "a-file"
    )
    assert told.endswith(f"checked-hash {root}")


def test_what_the_note_says_mends_it(tmp_path: Path) -> None:
    module(tmp_path / "lib", Mode.TIMESTAMP)
    (told,) = notes(tmp_path, "lib/")
    words = shlex.split(told[told.index("python -m compileall") :])
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert notes(tmp_path, "lib/") == []


def test_what_is_no_compiled_module_is_passed_over(tmp_path: Path) -> None:
    cache = tmp_path / "lib" / "__pycache__"
    cache.mkdir(parents=True)
    (cache / "module.pyc").write_bytes(b"\0" * 7)
    assert notes(tmp_path, "lib/") == []
