"""The ELF interpreter is where the kernel looks for it, also where a manifest mounts only /lib."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from applications import App

SHELL = str(Path(shutil.which("sh") or "/bin/sh").resolve())
GLIBC = "{{ graphene.runtimedir() }}"


@pytest.fixture
def old(app: App) -> App:
    """A shell with the C library at /lib and nothing at /lib64, as Graphene's manifests have it."""
    app.mount("/bin/sh", f"file:{SHELL}")
    app.mount("/lib", f"file:{GLIBC}/")
    app.trusted += [f"file:{SHELL}", f"file:{GLIBC}/"]
    app.settings["libos.entrypoint"] = '"/bin/sh"'
    app.settings["loader.argv"] = json.dumps(["sh", "-c", "echo started"])
    return app


def test_a_program_starts_with_its_interpreter_mounted_elsewhere(old: App) -> None:
    old.build(old.text())
    assert old.cloister("run", "app").stdout == "started\n"


def test_a_script_starts_too(old: App) -> None:
    script = old.directory / "script"
    script.write_text("#!/bin/sh\necho from a script\n")
    script.chmod(0o755)
    old.trusted.append("file:script")
    old.settings["libos.entrypoint"] = '"script"'
    old.settings["loader.argv"] = '["script"]'
    old.build(old.text())
    assert old.cloister("run", "app").stdout == "from a script\n"


@pytest.mark.parametrize("line", ["#! /bin/sh", "#!\t /bin/sh -e", "#!inner one"])
def test_a_script_names_its_interpreter_in_every_way_that_the_kernel_reads(
    old: App, line: str
) -> None:
    (old.directory / "script").write_text(f"{line}\necho from a script\n")
    (old.directory / "inner").write_text('#!/bin/sh\necho inner "$1"\n')
    for name in ("script", "inner"):
        (old.directory / name).chmod(0o755)
        old.trusted.append(f"file:{name}")
        old.mount(f"/scripts/{name}", f"file:{name}")
    old.settings["libos.entrypoint"] = '"/scripts/script"'
    old.settings["loader.argv"] = '["script"]'
    old.settings["fs.start_dir"] = '"/scripts"'
    old.build(old.text())
    expected = "inner one\n" if "inner" in line else "from a script\n"
    assert old.cloister("run", "app").stdout == expected


def test_a_granted_interpreter_comes_before_one_that_is_denied(app: App) -> None:
    """As where the whole host is mounted, and the C library of the runtime trusted."""
    app.settings["fs.root.uri"] = '"file:/"'
    app.mount("/lib", f"file:{GLIBC}/")
    app.trusted += [f"file:{SHELL}", f"file:{GLIBC}/"]
    app.settings["libos.entrypoint"] = json.dumps(SHELL)
    app.settings["loader.env.LD_LIBRARY_PATH"] = '"/lib"'
    app.settings["loader.argv"] = json.dumps(["sh", "-c", "echo started"])
    app.build(app.text())
    done = app.cloister("run", "app")
    assert done.stdout == "started\n"
    assert "ld-linux" not in done.stderr


def test_it_is_found_too_where_unlisted_files_are_let_through(old: App) -> None:
    """What is trusted is the host's own no more than otherwise; its links lead where they led."""
    old.settings["sgx.file_check_policy"] = '"allow_all_but_log"'
    old.build(old.text())
    assert old.cloister("run", "app").stdout == "started\n"


def test_an_interpreter_that_the_manifest_does_not_grant_stays_denied(old: App) -> None:
    old.trusted = [f"file:{SHELL}"]
    old.build(old.text())
    done = old.cloister("run", "app", expect=1)
    assert "ld-linux-x86-64.so.2: not a trusted, allowed or encrypted file" in done.stderr


def test_a_program_without_any_interpreter_is_told_which(old: App) -> None:
    old.mounts.pop()
    old.trusted = [f"file:{SHELL}"]
    old.build(old.text())
    done = old.cloister("run", "app", expect=2)
    assert "/bin/sh needs /lib64/ld-linux-x86-64.so.2 to start" in done.stderr
    assert "hint: mount it" in done.stderr


@pytest.mark.parametrize("target", ["usr/lib64", "/usr/lib64", "../usr/lib64"])
def test_a_link_to_the_directory_of_the_interpreter_is_followed(app: App, target: str) -> None:
    """As on today's systems, where /lib64 is one."""
    (app.directory / "usr" / "lib64").mkdir(parents=True)
    shutil.copy("/lib64/ld-linux-x86-64.so.2", app.directory / "usr" / "lib64")
    (app.directory / "lib64").symlink_to(target)
    app.mount("/bin/sh", f"file:{SHELL}")
    app.mount("/lib", "file:/lib")
    app.settings["libos.entrypoint"] = '"/bin/sh"'
    app.settings["loader.argv"] = '["sh", "-c", "echo started"]'
    (app.directory / "app.manifest").write_text(app.text())
    assert app.cloister("run", "--mode", "direct", "app").stdout == "started\n"
