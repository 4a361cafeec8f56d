"""A host that forges what an enclave keeps of its manifest gets nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from applications import App


def test_forged_values_do_not_start(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host lets itself into the allowed files of an enclave that has started before."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (app.directory / "files").mkdir()
    (app.directory / "files" / "unlisted").write_text("not granted")
    app.mount("/files", "file:files")
    app.build_shell()
    for _ in range(2):
        assert "not granted" not in app.run_shell("cat /files/unlisted", expect=1).stdout
    (path,) = (tmp_path / "data" / "cloister" / "manifests" / "simulated").iterdir()
    mac, _, values = path.read_bytes().partition(b"\n")
    fields = json.loads(values)
    sgx = next(value for name, value in fields["table"] if name == "sgx")
    next(item for item in sgx["table"] if item[0] == "allowed_files")[1] = ["file:files/unlisted"]
    path.write_bytes(mac + b"\n" + json.dumps(fields).encode())
    done = app.run_shell("cat /files/unlisted", expect=3)
    assert "not granted" not in done.stdout
    assert str(path) in done.stderr and "hint: rm" in done.stderr
    path.unlink()
    assert app.run_shell("echo ran").stdout == "ran\n"
