"""What C and C++ programs see of files and processes: natively, in direct mode and in an enclave.

The kernel is the oracle: whatever the native run says is right, over every kind of mount.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from applications import KEY, PROGRAMS, App

Outcomes = dict[str, str]

# Files are bound to one path of at most 771 bytes; nothing unencrypted is kept beside them.
REFUSED_WHERE_ENCRYPTED = {
    "links": "links: link=EPERM ",
    "symlinks": "symlinks: symlink=EPERM ",
    "exchanges": "exchanges: exchange=EINVAL ",
    "attributes": "attributes: set=EOPNOTSUPP ",
    "reserved_space": "reserved_space: keep=EOPNOTSUPP ",
    "deep_paths": "deep_paths: 30 deep=ENAMETOOLONG ",
}
PLACES = ("plain", "secret", "scratch")
SCRIPT = "; ".join(f"echo '== {place}'; cd /{place} && /compiled/{{0}}" for place in PLACES)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the compiled programs: those in C++ only where it can be compiled."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc)")
    directory = tmp_path_factory.mktemp("compiled")
    for compiler, name in (("cc", "files.c"), ("cc", "processes.c"), ("c++", "streams.cc")):
        if shutil.which(compiler) is None:
            continue
        source = PROGRAMS / name
        target = directory / source.stem
        command = [compiler, "-w", "-O1", "-pthread", "-o", str(target), str(source), "-lrt"]
        if compiler == "c++":
            command += ["-static-libstdc++", "-static-libgcc"]
        subprocess.run(command, check=True)
    return directory


def outcomes(text: str) -> Outcomes:
    return {line.partition(":")[0]: line for line in text.splitlines()}


@pytest.fixture(scope="module")
def native(programs: Path, memory: Path) -> Callable[[str], Outcomes]:
    """Return a function that tells what a program says natively."""

    @functools.cache
    def run(*command: str) -> Outcomes:
        directory = memory / "-".join(("native", *command))
        directory.mkdir()
        done = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=directory,
            capture_output=True,
            text=True,
            check=True,
            errors="surrogateescape",
        )
        return outcomes(done.stdout)

    return run


@pytest.fixture
def mounted(programs: Path, memory: Path, request: pytest.FixtureRequest) -> App:
    """An application with one mount of each kind, and the programs."""
    app = App(memory / str(request.node.name).replace("/", "-"))
    app.directory.mkdir()
    for name in ("plain", "secret"):
        (app.directory / name).mkdir()
    shutil.copytree(programs, app.directory / "bin")
    app.mount("/plain", "file:plain")
    app.mount("/secret", "file:secret", "encrypted")
    app.mount("/scratch", kind="tmpfs")
    app.mount("/compiled", "file:bin")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["sgx.allowed_files"] = '["file:plain"]'
    app.settings["sgx.enclave_size"] = '"4G"'  # 256 threads have 256 stacks
    app.settings["sgx.max_threads"] = "512"
    app.settings["sys.stack.size"] = '"2M"'
    app.trusted += [f"file:bin/{program.name}" for program in programs.iterdir()]
    return app


def compare(native: Outcomes, printed: str, *, same_everywhere: bool) -> None:
    found = {}
    for part in printed.split("== ")[1:]:
        place, _, text = part.partition("\n")
        found[place] = outcomes(text)
    assert set(found) == set(PLACES)
    for place, lines in found.items():
        expected = dict(native)
        if place == "secret" and not same_everywhere:
            for name, start in REFUSED_WHERE_ENCRYPTED.items():
                assert lines[name].startswith(start), lines[name]
                expected[name] = lines[name]
            if "EOPNOTSUPP" in expected.get("zeroed_ranges", ""):  # by the native file system
                expected["zeroed_ranges"] = lines["zeroed_ranges"]
        assert lines == expected, place


@pytest.mark.parametrize("program", ["files", "processes", "streams"])
@pytest.mark.parametrize("mode", ["direct", "enclave"])
def test_same_as_native(
    mounted: App, native: Callable[..., Outcomes], mode: str, program: str
) -> None:
    if not (mounted.directory / "bin" / program).exists():
        pytest.skip("no C++ compiler (c++)")
    script = SCRIPT.format(program)
    if mode == "direct":
        done = mounted.direct(["/bin/sh", "-c", script], errors="surrogateescape")
    else:
        mounted.build_shell()
        done = mounted.run_shell(script)
    compare(native(program), done.stdout, same_everywhere=program != "files")


@pytest.mark.long
def test_large_files_and_directories(mounted: App, native: Callable[..., Outcomes]) -> None:
    """Offsets beyond 4 GiB, 30,000 names. Encrypted files have no holes: only names there."""
    script = "cd /plain && /compiled/files large; cd /secret && /compiled/files names"
    done = mounted.direct(["/bin/sh", "-c", script], errors="surrogateescape")
    large, names = native("files", "large"), native("files", "names")
    lines = done.stdout.splitlines()
    assert outcomes("\n".join(lines[: len(large)])) == large
    assert outcomes("\n".join(lines[len(large) :])) == names
