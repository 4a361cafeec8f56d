"""The search for shared libraries, against what the dynamic linker itself does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.manifest.libraries import Libraries, read_dynamic


def linker(program: str) -> set[str]:
    """Ask the real dynamic linker; without its cache, as inside of an enclave."""
    interpreter, _ = read_dynamic(program) or (None, None)
    assert interpreter is not None
    listed = subprocess.run(
        [interpreter, "--inhibit-cache", "--list", program],
        capture_output=True,
        text=True,
        check=True,
        env={},
    ).stdout
    words = (line.split() for line in listed.splitlines())
    return {
        line[2] if "=>" in line else line[0]
        for line in words
        if line[0].strip("/") != line[0] or "=>" in line
    }


@pytest.mark.parametrize(
    "program", [sys.executable, "/bin/ls", shutil.which("openssl") or "/bin/sh"]
)
def test_finds_what_the_linker_finds(program: str) -> None:
    found = Libraries([program])
    assert linker(program) <= set(found.names)


def test_every_name_exists_and_is_a_library() -> None:
    for name in Libraries([sys.executable]).names:
        assert Path(name).read_bytes()[:4] == b"\x7fELF"


def test_what_glibc_loads_by_itself() -> None:
    names = Libraries(["/bin/ls"]).names
    assert any(name.endswith("/libgcc_s.so.1") for name in names)


def test_a_script_needs_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert not Libraries([str(script)]).names


@pytest.fixture
def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler is installed")
    return found


def test_runpath_of_an_application(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libown.so.1"
    _compile(compiler, "int own(void) { return 0; }", library, "-shared", "-Wl,-soname,libown.so.1")
    program = tmp_path / "program"
    origin = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/lib"
    source = "int own(void); int main(void) { return own(); }"
    _compile(compiler, source, program, str(library), origin)
    assert str(library) in Libraries([str(program)]).names
    assert linker(str(program)) <= set(Libraries([str(program)]).names)


def test_default_and_configured_directories(compiler: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    tuned = second / "glibc-hwcaps" / "x86-64-v3"
    for directory in (first, second, third, tuned):
        directory.mkdir(parents=True)
    _compile(compiler, "int own(void) { return 0; }", first / "libown.so", "-shared")
    shutil.copy(first / "libown.so", tuned)
    _compile(compiler, "int more(void) { return 0; }", third / "libmore.so", "-shared")
    program = tmp_path / "program"
    source = "int own(void), more(void); int main(void) { return own() + more(); }"
    _compile(compiler, source, program, f"-L{first}", f"-L{third}", "-lown", "-lmore")
    found = Libraries(
        [str(program)],
        default_directories=[str(first), str(second)],
        configured_directories=[str(third)],
    )
    own = {str(first / "libown.so"), str(tuned / "libown.so"), str(third / "libmore.so")}
    assert own <= set(found.names)
    assert found.needs_cache


def _compile(compiler: str, source: str, output: Path, *arguments: str) -> None:
    subprocess.run(
        [compiler, "-x", "c", "-", "-o", str(output), "-x", "none", *arguments],
        input=source.encode(),
        check=True,
    )
