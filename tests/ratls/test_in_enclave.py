"""RA-TLS from inside a running enclave, judged from outside."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cloister
from applications import CLOISTER, App
from cloister.attestation import SimulatedBundle
from cloister.attestation.policy import MrEnclave
from cloister.attestation.trust import Authenticator, Trust
from cloister.cli.main import run
from cloister.cli.trust import utc_now
from cloister.errors import InputError, WrongMeasurementError
from cloister.ratls.programs import connect, expect, quote_of_this_enclave
from cloister.ratls.validity import DEFAULT_NOT_AFTER, DEFAULT_NOT_BEFORE, validity_from
from environments import bare_python

PACKAGES = ("cryptography", "click", "cbor2", "dcap_qvl")
RATLS = ("-m", "cloister", "ratls", "/tmp/ratls.crt", "/tmp/ratls.key")
FILES_SERVER = """
import socket, ssl, stat, os
for name in ("/tmp/ratls.crt", "/tmp/ratls.key"):
    assert stat.S_IMODE(os.stat(name).st_mode) in (0o600, 0o644), name
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/ratls.crt", "/tmp/ratls.key")
"""
API_SERVER = """
import socket
from cloister.ratls.validity import DEFAULT_NOT_AFTER, DEFAULT_NOT_BEFORE, validity_from
from cloister.ratls.programs import server_context, this_enclave
context = server_context(this_enclave())
"""
ACCEPT = """
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connected, _ = listener.accept()
    try:
        with context.wrap_socket(connected, server_side=True) as tls:
            tls.sendall(b"from the enclave")
    except OSError:
        pass
"""


@pytest.fixture
def app(tmp_path: Path) -> App:
    directory = tmp_path / "app"
    directory.mkdir()
    return App(directory)


@pytest.fixture
def start(app: App) -> Iterator[Callable[..., int]]:
    """Return a function that runs Python in an enclave and returns the port that it prints."""
    running: list[subprocess.Popen[str]] = []

    def run_in_enclave(*arguments: str) -> int:
        python = bare_python(app.directory / "python")
        site = Path(pytest.__file__).parent.parent
        sources = {name: site / name for name in PACKAGES}
        sources |= {path.name: path for path in site.glob("_cffi_backend*.so")}
        sources |= {path.name: path for path in site.glob("dcap_qvl-*.dist-info")}
        sources["cloister"] = Path(cloister.__file__).parent
        for name, path in sources.items():
            app.mount(f"/site/{name}", f"file:{path}")
            app.trusted.append(f"file:{path}/" if path.is_dir() else f"file:{path}")
        modules = [so for path in sources.values() for so in _shared_objects(path)]
        called = ", ".join(f"'{module}'" for module in modules)
        app.mount("/tmp", kind="tmpfs")
        app.settings["sgx.remote_attestation"] = '"dcap"'
        app.settings["loader.env.PYTHONPATH"] = '"/site"'
        app.settings["loader.env.PATH"] = f'"{Path(python).parent}"'
        app.settings["libos.entrypoint"] = json.dumps(python)
        app.settings["loader.argv"] = json.dumps([python, *arguments])
        app.build(
            app.text(
                prologue=f"{{% set python = python_environment('{python}') %}}"
                f"{{% set libraries = ldd({called}) %}}",
                mounts="{% for d in (python.directories | list) + (libraries | list) %}"
                '{ path = "{{ d }}", uri = "file:{{ d }}" }, {% endfor %}',
                trusted='{% for f in python.trusted_files %}"{{ f }}", {% endfor %}'
                '{% for f in libraries %}"file:{{ f }}", {% endfor %}',
            )
        )
        process = subprocess.Popen(
            [*CLOISTER, "run", "app"],
            cwd=app.directory,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        running.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    yield run_in_enclave
    for process in running:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def _shared_objects(path: Path) -> list[Path]:
    """Extension modules: what they need of the system is not what the bare interpreter needs."""
    if path.is_dir():
        return sorted(path.rglob("*.so"))
    return [path] if path.suffix == ".so" else []


@pytest.mark.parametrize(
    "arguments",
    [
        [*RATLS, "--", "python", "-c", FILES_SERVER + ACCEPT],
        ["-c", API_SERVER + ACCEPT],
    ],
    ids=["files", "api"],
)
def test_a_server_in_an_enclave_is_verified_from_outside(
    app: App,
    start: Callable[..., int],
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = start(*arguments)
    mrenclave = bytes.fromhex(json.loads(app.built)["mrenclave"])
    bundle = tmp_path / "platform.json"
    assert run(["platform", "export", str(bundle)]) == 0
    trusted = SimulatedBundle.from_json(bundle.read_text())
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'version = 1\nmrenclave = "{mrenclave.hex()}"\nroots = ["{trusted.anchor.fingerprint}"]\n'
    )
    options = ["--trust-simulated", str(bundle), "--policy", str(policy)]
    assert run(["attest", f"127.0.0.1:{port}", *options]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    authenticator = Authenticator(Trust(((trusted.anchor, trusted.collateral),)), utc_now)
    with connect("127.0.0.1", port, expect(MrEnclave(mrenclave), authenticator)) as tls:
        assert tls.recv(100) == b"from the enclave"
    with (
        pytest.raises(WrongMeasurementError),
        connect("127.0.0.1", port, expect(MrEnclave(bytes(32)), authenticator)),
    ):
        pytest.fail("another enclave was accepted")


def test_outside_an_enclave_there_is_no_quote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="user_report_data"):
        quote_of_this_enclave(bytes(64), tmp_path)
    certificate, key = str(tmp_path / "crt"), str(tmp_path / "key")
    command = ["ratls", "--encrypted-mount", certificate, key, "--", "echo", "started"]
    assert run(command) == 2
    assert list(tmp_path.iterdir()) == []
    shown = capsys.readouterr()
    assert "user_report_data" in shown.err
    assert "started" not in shown.out


def test_the_key_is_not_written_where_the_host_can_read_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # /sys is a file system on every Linux, and never memory of ours.
    assert run(["ratls", "/sys/crt", "/sys/key", "--", "echo", "started"]) == 2
    shown = capsys.readouterr()
    assert "sysfs" in shown.err
    assert "tmpfs" in shown.err
    assert "started" not in shown.out


def test_validity_comes_from_the_environment() -> None:
    assert validity_from({}) == (DEFAULT_NOT_BEFORE, DEFAULT_NOT_AFTER)
    not_before, _ = validity_from({"RA_TLS_CERT_TIMESTAMP_NOT_BEFORE": "20260102030405"})
    assert not_before.isoformat() == "2026-01-02T03:04:05+00:00"
    for text in ("", "2026", "20260102030499", "2026010203040"):
        with pytest.raises(InputError, match="NOT_AFTER"):
            validity_from({"RA_TLS_CERT_TIMESTAMP_NOT_AFTER": text})
