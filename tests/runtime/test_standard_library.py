"""Python's own tests of files and processes, in an enclave, in an encrypted directory."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
import tomli

from applications import KEY, PYTHON, App

EXPECTED = tomli.loads((Path(__file__).parent / "data" / "standard_library.toml").read_text())
TESTS = Path(sysconfig.get_path("stdlib")) / "test"


@pytest.fixture
def libraries(app: App) -> App:
    """An application with an encrypted directory to work in, and Python's tests."""
    if not (TESTS / "test_os.py").is_file():
        pytest.skip(f"this Python came without its tests ({TESTS})")
    (app.directory / "files").mkdir()
    app.mount("/files", "file:files", "encrypted")
    for path in ("/bin/sh", "/etc/passwd", "/etc/group"):
        app.mount(path, f"file:{path}")
        app.trusted.append(f"file:{path}")
    app.trusted.append(f"file:{TESTS}/")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    app.settings["loader.env.TMPDIR"] = '"/files"'
    app.settings["loader.env.HOME"] = '"/files"'
    app.settings["sgx.enclave_size"] = '"8G"'
    app.settings["sgx.max_threads"] = "512"
    app.settings["sys.stack.size"] = '"8M"'
    app.settings["sys.fds.limit"] = "4096"
    return app


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_pythons_own_tests(libraries: App) -> None:
    modules = EXPECTED["modules"]
    ignored = [word for name in EXPECTED["ignored"] for word in ("--ignore", name)]
    program = ["-m", "test", "-w", "--tempdir", "/files", *ignored, *modules]
    done = libraries.enclave_python(*program, expect=None, timeout=1100, python=PYTHON)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert re.search(r"^Result: .*SUCCESS$", done.stdout, re.MULTILINE), done.stdout[-3000:]
