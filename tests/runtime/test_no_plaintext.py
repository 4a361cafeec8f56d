"""No plaintext of an encrypted file reaches a disk, while the enclave runs or afterwards."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from applications import KEY, App
from cloister.encrypted.file import EncryptedFile


def _places(app: App, own_user_directories: Path) -> list[Path]:
    """Wherever this machine or the runtime might leave something."""
    usual = [tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run", str(own_user_directories)]
    return [app.directory, *(Path(place) for place in usual if Path(place).is_dir())]


def _files_since(place: Path, since: float) -> Iterator[Path]:
    for directory, _, names in os.walk(place):
        for name in names:
            path = Path(directory, name)
            try:
                status = path.lstat()
                if path.is_file() and not path.is_symlink() and status.st_mtime >= since:
                    yield path
            except OSError:
                continue  # gone meanwhile, or not ours to read


def _holding(marker: bytes, places: list[Path], since: float) -> list[Path]:
    found = []
    for place in places:
        for path in _files_since(place, since):
            try:
                if marker in path.read_bytes():
                    found.append(path)
            except OSError:
                continue
    return found


def test_marker_bytes_are_nowhere(app: App, own_user_directories: Path) -> None:
    since = time.time() - 2
    marker = secrets.token_hex(32).encode()
    for name in ("secret", "logs"):
        (app.directory / name).mkdir()
    encrypted = EncryptedFile.create_path(
        app.directory / "secret" / "in", bytes.fromhex(KEY), "secret/in"
    )
    encrypted.write(0, (marker + b"\n") * 2000)
    encrypted.close()
    app.mount("/secret", "file:secret", "encrypted")
    app.mount("/logs", "file:logs")
    app.mount("/tmp", kind="tmpfs")
    app.settings["sgx.allowed_files"] = '["file:logs"]'
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.build_shell()
    places = _places(app, own_user_directories)
    during: list[Path] = []

    def search() -> None:
        while not (app.directory / "logs" / "written").exists():
            time.sleep(0.05)
        during.extend(_holding(marker, places, since))
        (app.directory / "logs" / "go").touch()

    app.run_shell(
        "cat /secret/in > /secret/out; cat /secret/in > /tmp/copy; cmp /tmp/copy /secret/out;"
        "echo > /logs/written; while [ ! -e /logs/go ]; do sleep 0.05; done;"
        "cat /tmp/copy >> /secret/out; mv /secret/out /secret/result",
        meanwhile=search,
    )
    assert during == []
    assert _holding(marker, places, since) == []
    # The search finds what is there: the same bytes in the open are seen.
    (app.directory / "open").write_bytes(b"x" * 100 + marker)
    assert set(_holding(marker, places, since)) == {app.directory / "open"}
    result = EncryptedFile.open_path(
        app.directory / "secret" / "result", bytes.fromhex(KEY), "secret/result", writable=False
    )
    assert result.read(0, result.size) == (marker + b"\n") * 4000
    result.close()
