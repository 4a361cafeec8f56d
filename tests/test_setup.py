"""Set-up: the pins, the Makefile's steps and messages, and the entry of the project's checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
FILES = ("base.txt", "demo.txt", "frameworks.txt", "tensorflow.txt", "test.txt")


def make(
    *arguments: str, path: str | None = None, tree: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh shell: without what an outer make hands down."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "PATH") or name.startswith("PIP_")
    }
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        ["make", *arguments],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# Pins


def requirements(file: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def pins(python: str) -> dict[str, str]:
    """Return what a Python version gets from all files: name -> version."""
    found: dict[str, str] = {}
    for requirement in (each for file in FILES for each in requirements(file)):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} has two versions on Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_requirement_has_exactly_one_version(file: str) -> None:
    for requirement in requirements(file):
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert "*" not in str(requirement.specifier), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_what_the_package_asks_for(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    pinned = pins(python)
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


# Steps


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment in which every command only writes down how it was called."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("pip", "python", "cloister", "ruff", "mypy"):
        command = venv / "bin" / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" >>"{venv}/calls"\n')
        command.chmod(0o755)
    return venv


def calls(venv: Path) -> list[str]:
    """Return the commands since the last call of this function."""
    log = venv / "calls"
    lines = [line.rstrip() for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_demo_installs_in_order_and_then_runs(venv: Path) -> None:
    done = make("demo", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    base, package, bytecode, demo, run = calls(venv)
    assert base.startswith("python -m pip install")
    assert base.endswith("-r requirements/base.txt")
    assert package.endswith("--no-deps --no-build-isolation --editable .")
    assert bytecode.startswith("python -m compileall -q src/cloister")
    assert demo.endswith("-r requirements/demo.txt")
    assert all("--only-binary=:all:" in each for each in (base, demo))
    assert run == "cloister demo"
    steps = done.stdout.splitlines()
    assert len(steps) == 2
    assert all(step.startswith("==> ") for step in steps)


def test_test_checks_and_then_tests(venv: Path) -> None:
    done = make("test", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    called = calls(venv)
    assert [each for each in called if "requirements/test.txt" in each]
    first = called.index("ruff check .")
    assert called[first + 1 : first + 3] == ["ruff format --check .", "mypy"]
    *examples, tests = called[first + 3 :]
    assert len(examples) == len({path.parent for path in (ROOT / "examples").glob("*/*.py")})
    assert all(each.startswith("mypy --config-file") for each in examples)
    assert tests.startswith("python -m pytest -n 2 -m not long")


def test_docs_writes_the_reference_and_builds_strictly(venv: Path) -> None:
    done = make("docs", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    *_, reference, site = calls(venv)
    assert reference == "python docs/reference.py"
    assert site == "python -m mkdocs build --strict --quiet"


def test_nothing_is_installed_twice(venv: Path) -> None:
    make("test", f"VENV={venv}")
    calls(venv)
    done = make("demo", f"VENV={venv}")
    assert calls(venv) == ["cloister demo"]
    assert done.stdout == ""


def test_a_changed_requirement_is_installed(venv: Path) -> None:
    make("test", f"VENV={venv}")
    calls(venv)
    os.utime(venv / ".ready-demo", (0, 0))
    make("demo", f"VENV={venv}")
    demo, run = calls(venv)
    assert demo.endswith("-r requirements/demo.txt")
    assert run == "cloister demo"


def test_a_failed_installation_is_repeated(venv: Path) -> None:
    (venv / "bin" / "python").write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    done = make("demo", f"VENV={venv}")
    assert done.returncode != 0
    assert "no network" in done.stderr
    assert not list(venv.glob(".ready-*"))


def test_torch_index_is_one_more_index(venv: Path) -> None:
    make("demo", f"VENV={venv}", "TORCH_INDEX=https://index.example/cpu")
    demo = next(each for each in calls(venv) if "demo.txt" in each)
    assert "--extra-index-url https://index.example/cpu" in demo
    assert "--index-url" not in demo.replace("--extra-index-url", "")


# Messages


def python_that(tmp_path: Path, script: str) -> Path:
    command = tmp_path / "python-of-a-test"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return command


@pytest.mark.parametrize("script", ["exit 1", None])
def test_old_or_absent_python_is_named(script: str | None, tmp_path: Path) -> None:
    python = python_that(tmp_path, script) if script else tmp_path / "absent"
    done = make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert f"error: {python} is missing or older than Python 3.10" in done.stderr
    assert "hint: " in done.stderr
    assert not (tmp_path / "venv").exists()


def test_missing_venv_names_the_debian_package(tmp_path: Path) -> None:
    python = python_that(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "hint: sudo apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_alone_lists_the_targets() -> None:
    done = make()
    assert done.returncode == 0
    assert "make demo" in done.stdout
    assert "make test" in done.stdout


# The checks' entry


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs the checks where only a few commands are, and apt-get's calls are noted."""

    def check(*commands: str, root: bool) -> subprocess.CompletedProcess[str]:
        for name in ("bash", "dirname"):
            (tmp_path / name).symlink_to(str(shutil.which(name)))
        scripts = dict.fromkeys(commands, "true") | {
            "id": f"echo {0 if root else 1000}",
            "make": 'echo "make $*; CI=$CI; in $PWD"',
            "timeout": 'shift; echo "$*" >&3; "$@"',
        }
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{script}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", f'exec 3>"{tmp_path}/calls"; exec "{ROOT}/.ci/run"'],
            cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == f"make test; CI=true; in {ROOT}\n"
        return done

    return check


Machine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("commands", "root"),
    [(("apt-get", "chromium"), True), (("apt-get",), False), ((), True)],
    ids=["there already", "not root", "no apt-get"],
)
def test_checks_call_exactly_make_test(
    machine: Machine, commands: tuple[str, ...], root: bool, tmp_path: Path
) -> None:
    """CI=true turns skips without an excuse into failures."""
    assert machine(*commands, root=root).stderr == ""
    assert (tmp_path / "calls").read_text() == ""


def test_checks_install_a_browser_as_root(machine: Machine, tmp_path: Path) -> None:
    assert machine("apt-get", root=True).stderr == ""
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update == "apt-get update -qq"
    assert install == "apt-get install -y -qq --no-install-recommends chromium"


def test_checks_go_on_without_a_browser(machine: Machine, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f"#!{shutil.which('sh')}\necho other; echo no network; exit 1\n")
    apt.chmod(0o755)
    assert (
        machine(root=True).stderr
        == "chromium is not installed, its tests are skipped: no network\n"
    )


@pytest.mark.long
def test_a_fresh_tree_installs_the_package(tmp_path: Path) -> None:
    """With the real pip and this machine's package index; PyTorch is left out for its size."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "encrypted", "*_cache")
    )
    done = make(".venv/.ready-base", f"PYTHON={sys.executable}", tree=tree)
    assert done.returncode == 0, done.stderr
    cloister = tree / ".venv" / "bin" / "cloister"
    shown = subprocess.run([cloister, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("cloister")
