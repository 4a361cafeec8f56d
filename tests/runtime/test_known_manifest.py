"""A host that forges what an enclave keeps of its manifest gets nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

from applications import App
from cloister.errors import EnclaveStartError, UnsupportedByPlatformError
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.runtime.load import enclave_program


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


class KeylessPlatform(SimulatedPlatform):
    """One without sealing keys, as TDX virtual machines are."""

    name = "keyless"

    def start(self, **parameters: Any) -> SimulatedEnclave:
        enclave = super().start(**parameters)

        def refuse(*_: object) -> NoReturn:
            raise UnsupportedByPlatformError("no sealing keys")

        setattr(enclave, "sealing_key", refuse)  # noqa: B010  (in place of a method)
        return enclave


def test_where_nothing_can_be_sealed_nothing_is_believed(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    app.build_shell()
    app.run_shell("true")
    kept = tmp_path / "data" / "cloister" / "manifests"
    platform = KeylessPlatform.of_this_machine()
    name = app.directory / "app"
    signed = enclave_program(name, (), {}, platform.name)
    signed.confirm(signed.start(platform, None), signed.signed.digest)
    assert not (kept / "keyless").exists()
    shutil.copytree(kept / "simulated", kept / "keyless")  # the host's own idea
    signed = enclave_program(name, (), {}, platform.name)
    with pytest.raises(EnclaveStartError, match="is not what this enclave has kept"):
        signed.confirm(signed.start(platform, None), signed.signed.digest)
