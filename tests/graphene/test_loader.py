"""``graphene-direct``, ``graphene-sgx``, ``pal_loader``: arguments and exit codes as of old."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from applications import App

SHOW = ["/bin/sh", "-c", 'echo "$0" "$@"; exit 7', "name"]


@pytest.fixture
def app(tmp_path: Path) -> App:
    directory = tmp_path / "app"
    directory.mkdir()
    return App(directory)


def front(
    app: App, command: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an installed command in the application's directory."""
    return subprocess.run(
        [str(Path(sys.executable).with_name(command)), *arguments],
        cwd=app.directory,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["graphene-direct", "graphene-sgx", "pal_loader"])
def test_without_application_it_tells_its_usage(app: App, command: str) -> None:
    done = front(app, command)
    assert (done.returncode, done.stdout) == (2, f"Usage: {command} [<application>] <args>...\n")


@pytest.mark.parametrize(
    ("command", "missing"),
    [("graphene-direct", "./pytorch.manifest"), ("graphene-sgx", "./pytorch.manifest.sgx")],
)
def test_an_application_that_does_not_exist(app: App, command: str, missing: str) -> None:
    done = front(app, command, "./pytorch")
    assert done.returncode == 2
    missing = missing.removeprefix("./")
    assert f"Invalid application path specified ({missing} does not exist)." in done.stderr
    assert "hint: " in done.stderr


def test_direct_passes_arguments_and_exit_code(app: App) -> None:
    app.direct(["/bin/true"])
    app.settings["libos.entrypoint"] = '"/bin/sh"'
    del app.settings["loader.argv"]
    app.settings["loader.insecure__use_cmdline_argv"] = "true"
    (app.directory / "app.manifest").write_text(app.text())
    for command in ("graphene-direct", "pal_loader"):
        done = front(app, command, "./app", "-c", 'echo "$@"; exit 7', "x", "--mode", "-D")
        assert (done.returncode, done.stdout) == (7, "--mode -D\n"), done.stderr
    assert front(app, "graphene-direct", "app", "-c", "kill -SEGV $$").returncode == 139


def test_arguments_that_the_manifest_overrides_are_dropped(app: App) -> None:
    app.direct(SHOW, expect=7)
    done = front(app, "graphene-direct", "./app", "WRONG", "ARGUMENTS")
    assert (done.returncode, done.stdout) == (7, "name\n")
    assert "dropped, loader.argv stands: WRONG ARGUMENTS" in done.stderr


def test_a_start_that_fails_is_no_success(app: App) -> None:
    app.direct(["/bin/there-is-no-such-program"], expect=1)
    done = front(app, "graphene-direct", "./app")
    assert done.returncode == 1
    assert "cannot start: No such file or directory" in done.stderr


def test_sgx_runs_the_enclave(app: App) -> None:
    app.build_shell()
    for command, environment in (("graphene-sgx", {}), ("pal_loader", {"SGX": "1"})):
        done = front(app, command, "./app", "-c", "echo inside; exit 3", **environment)
        assert (done.returncode, done.stdout) == (3, "inside\n"), done.stderr
        assert "SIMULATED enclave" in done.stderr
    (app.directory / "app.sig").unlink()
    refused = front(app, "graphene-sgx", "./app")
    assert refused.returncode == 1
    assert "app.sig: does not exist" in refused.stderr


def test_an_unsigned_application_is_told_to_be_signed(app: App) -> None:
    app.direct(["/bin/true"])
    done = front(app, "graphene-sgx", "./app")
    assert done.returncode == 2
    assert "hint: sign it first: make SGX=1" in done.stderr
