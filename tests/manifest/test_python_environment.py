"""What a Python interpreter needs: everything it opens is listed and mounted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import ManifestError
from cloister.manifest.model import TrustedFile
from cloister.manifest.python_environment import PythonEnvironment, python_environment
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand

# Runs a few imports and says which files the process opened: its modules and its libraries.
PROBE = """
import ctypes, decimal, hashlib, json, sqlite3, ssl, sys
modules = list(sys.modules.values())
files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
cached = [module.__cached__ for module in modules if getattr(module, "__cached__", None)]
mapped = [line.split()[-1] for line in open("/proc/self/maps") if "/" in line and ".so" in line]
print(json.dumps({"modules": files, "cached": cached, "mapped": mapped}))
"""


def environment(interpreter: str | None = None) -> PythonEnvironment:
    return python_environment(interpreter, tree=FileTree())


def names(found: PythonEnvironment) -> set[str]:
    listed = [TrustedFile(uri=uri) for uri in found.trusted_files]

    def problem(number: int, what: str, hint: str | None) -> ManifestError:
        return ManifestError(what)

    return set(expand(listed, Path("/"), FileTree(), problem))


def opened(interpreter: str) -> dict[str, list[str]]:
    answer = subprocess.run(
        [interpreter, "-I", "-c", PROBE], capture_output=True, check=True, text=True
    )
    result: dict[str, list[str]] = json.loads(answer.stdout)
    return result


def check(interpreter: str, found: PythonEnvironment) -> None:
    trusted = names(found)
    real = {os.path.realpath(name) for name in trusted if ".so" in name}
    probe = opened(interpreter)
    assert found.executable in trusted
    assert set(probe["modules"]) <= trusted
    assert {str(Path(name).resolve()) for name in probe["mapped"]} <= real
    assert {name for name in probe["cached"] if Path(name).exists()} <= trusted
    below = tuple(f"{mount}/" for mount in found.directories)
    for name in trusted - set(found.directories):
        assert name.startswith(below), f"{name} is trusted but not mounted"


def test_this_interpreter() -> None:
    found = environment()
    assert found.executable == sys.executable
    check(sys.executable, found)
    assert f"file:{sys.prefix}/pyvenv.cfg" in found.trusted_files or sys.prefix == sys.base_prefix


def test_virtual_environment_over_the_system_python(tmp_path: Path) -> None:
    base = shutil.which("python3", path="/usr/bin")
    if base is None:
        pytest.skip("no /usr/bin/python3")
    subprocess.run([base, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    found = environment(str(tmp_path / "venv"))
    interpreter = str(tmp_path / "venv" / "bin" / "python")
    assert found.executable == interpreter
    check(interpreter, found)
    assert not {"/", "/usr", "/usr/lib", "/usr/bin"} & set(found.directories)
    assert not any("dist-packages" in name for name in names(found))


def test_system_python_shows_only_itself_of_its_directory() -> None:
    base = shutil.which("python3", path="/usr/bin")
    if base is None:
        pytest.skip("no /usr/bin/python3")
    found = environment(base)
    check(base, found)
    assert found.executable in found.directories
    assert "/usr/bin" not in found.directories


def test_packages_of_the_base_are_not_those_of_a_virtual_environment(tmp_path: Path) -> None:
    """A prefix as conda's and pyenv's: site-packages lies inside of the standard library."""
    prefix = tmp_path / "prefix"
    library = prefix / "lib" / "python3.99"
    for directory in (library / "json", library / "site-packages" / "secret"):
        directory.mkdir(parents=True)
        (directory / "__init__.py").touch()
    (library / "os.py").touch()
    venv = tmp_path / "venv"
    site = venv / "lib" / "python3.99" / "site-packages"
    site.mkdir(parents=True)
    (site / "own.py").touch()
    (venv / "bin").mkdir()
    facts = {
        "executable": str(venv / "bin" / "python"),
        "prefix": str(venv),
        "base_prefix": str(prefix),
        "path": [str(prefix / "lib" / "python399.zip"), str(library), str(site)],
        "stdlib": str(library),
        "platstdlib": str(library),
    }
    fake = venv / "bin" / "python"
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    fake.chmod(0o755)
    found = environment(str(venv))
    trusted = names(found)
    assert {str(library / "os.py"), str(library / "json" / "__init__.py")} <= trusted
    assert str(site / "own.py") in trusted
    assert not any("secret" in name for name in trusted)
    assert found.directories == (str(prefix), str(venv))


def test_packages_behind_links_are_trusted_under_the_links_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sub" / "module.py").touch()
    site.mkdir()
    (site / "package").symlink_to(tmp_path / "elsewhere")
    (site / "itself").symlink_to(site)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    facts = {
        "executable": str(tmp_path / "python"),
        "prefix": str(tmp_path),
        "base_prefix": str(tmp_path),
        "path": [str(site)],
        "stdlib": str(site),
        "platstdlib": str(site),
    }
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    fake.chmod(0o755)
    assert str(site / "package" / "sub" / "module.py") in names(environment(str(fake)))


def test_not_python() -> None:
    with pytest.raises(ManifestError, match="does not answer as Python 3 does"):
        environment("/bin/true")
    with pytest.raises(ManifestError, match="/nowhere does not exist"):
        environment("/nowhere")


def test_names_are_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    monkeypatch.chdir(tmp_path)
    expected = environment(str(tmp_path / ".venv"))
    assert environment(".venv") == environment(".venv/bin/python") == expected
    assert expected.executable == str(tmp_path / ".venv" / "bin" / "python")
    with pytest.raises(ManifestError, match="/none/bin does not exist"):
        environment("none/bin")


def test_environment_variables_do_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(tmp_path) not in " ".join(environment().trusted_files)
