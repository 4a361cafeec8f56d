"""``secret_prov_server_dcap`` as the tutorial uses it, and the ``RA_TLS_*`` variables."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.cli.main import run_command
from cloister.errors import InputError
from cloister.graphene.secret_prov_server import command
from cloister.provision.ra_tls_variables import measurements, with_tolerances
from cloister.sgx.sigstruct import Sigstruct
from key_server import KEY, Setting

ANY = {
    "RA_TLS_MRENCLAVE": "any",
    "RA_TLS_MRSIGNER": "any",
    "RA_TLS_ISV_PROD_ID": "any",
    "RA_TLS_ISV_SVN": "any",
}
PF_KEY: dict[str, str | None] = {
    "SECRET_PROVISION_SET_PF_KEY": "1",
    "SECRET_PROVISION_SET_KEY": None,
}


class Front:
    """The command, in the background in the directory of the example."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        for name in ("certs", "files"):
            (setting.directory / name).mkdir()
        shutil.copy(setting.directory / "server.crt", setting.directory / "certs")
        shutil.copy(setting.directory / "server.key", setting.directory / "certs")
        (setting.directory / "files" / "wrap-key").write_bytes(KEY)
        setting.write_bundle(setting.platform)
        self.processes: list[subprocess.Popen[str]] = []
        self.announced = ""

    def start(self, *options: str, **variables: str) -> int:
        with socket.create_server(("localhost", 0)) as free:
            port: int = free.getsockname()[1]
        program = str(Path(sys.executable).parent / "secret_prov_server_dcap")
        given = {
            "CLOISTER_TRUST_SIMULATED": "bundle.json",
            "SECRET_PROVISION_LISTENING_PORT": str(port),
        } | variables
        process = subprocess.Popen(
            [program, *options],
            cwd=self.setting.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | given,
        )
        self.processes.append(process)
        self.announced = self.until("listening")
        return port

    def until(self, word: str) -> str:
        """Read the last server's output up to a line with ``word``; return it all."""
        stream, text = self.processes[-1].stdout, ""
        assert stream is not None
        while word not in text:
            line = stream.readline()
            assert line, text
            text += line
        return text

    def sign(self, manifest: bytes) -> None:
        """Leave the SIGSTRUCT of an enclave in the directory, as a build does."""
        key = load_pem_private_key(
            (self.setting.data / "signing" / "key.pem").read_bytes(), password=None
        )
        assert isinstance(key, RSAPrivateKey)
        fields: dict[str, Any] = {
            "mr_enclave": self.setting.enclave(manifest).mrenclave,
            "modulus": key.public_key().public_numbers().n,
            **dict.fromkeys(("flags", "xfrm", "flags_mask", "xfrm_mask"), 4),
            **dict.fromkeys(("misc_select", "misc_mask", "isv_prod_id", "isv_svn"), 0),
            "date": 0x20260102,
        }
        packed = Sigstruct(**fields).sign(key).pack()
        (self.setting.directory / "pytorch.sig").write_bytes(packed)


@pytest.fixture
def front(setting: Setting) -> Iterator[Front]:
    made = Front(setting)
    yield made
    for process in made.processes:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def test_the_enclave_that_is_built_here_gets_the_key(setting: Setting, front: Front) -> None:
    """The tutorial starts the server first and builds afterwards."""
    port = front.start()
    assert setting.fetch(port, environment=PF_KEY)["error"] == "ProvisioningRefusedError"
    assert "no *.sig yet" in front.until("REFUSED")
    front.sign(b"manifest")
    answer = setting.fetch(port, environment=PF_KEY)
    assert bytes.fromhex(answer["secret"]) == KEY.hex().encode() + b"\0"
    assert answer["key"] == KEY.hex()
    assert "SIMULATED" in front.until("RELEASED")
    assert "error" in setting.fetch(port, environment=PF_KEY, manifest="another")
    (setting.directory / "pytorch.sig").write_bytes(b"damaged")
    assert "error" in setting.fetch(port, environment=PF_KEY)
    front.processes[0].send_signal(signal.SIGTERM)
    assert "stopped: 1 released" in front.until("stopped")
    assert front.processes[0].wait(20) == 0


def test_gramines_variables_and_form(setting: Setting, front: Front) -> None:
    mrenclave = setting.enclave().mrenclave.hex()
    port = front.start("--raw", **ANY | {"RA_TLS_MRENCLAVE": mrenclave, "RA_TLS_ISV_SVN": "3"})
    assert setting.fetch(port)["secret"] == KEY.hex()
    assert "error" in setting.fetch(port, manifest="another")
    assert "error" in setting.fetch(port, fields={"isv_svn": 2})


def test_the_certificates_of_the_examples_come_first(setting: Setting, front: Front) -> None:
    certs = setting.directory / "certs"
    (certs / "server.crt").rename(certs / "server2-sha256.crt")
    (certs / "server.key").rename(certs / "server2.key")
    (certs / "server.crt").write_text("not this one")
    front.sign(b"manifest")
    assert setting.fetch(front.start(), environment=PF_KEY)["key"] == KEY.hex()


def test_a_simulated_platform_is_trusted_by_name_only(setting: Setting, front: Front) -> None:
    front.sign(b"manifest")
    port = front.start(CLOISTER_TRUST_SIMULATED="")
    assert "error" in setting.fetch(port, environment=PF_KEY)
    assert "SIMULATED" in front.until("REFUSED")


@pytest.mark.parametrize(
    ("variables", "missing", "words"),
    [
        ({"RA_TLS_MRENCLAVE": "00" * 32}, "", "RA_TLS_MRSIGNER is not set"),
        ({**ANY, "RA_TLS_MRENCLAVE": "00"}, "", "64 hex digits"),
        ({**ANY, "RA_TLS_ISV_SVN": "65536"}, "", "at most 65535"),
        ({**ANY, "RA_TLS_ISV_PROD_ID": "x"}, "", "expected a number"),
        ({"RA_TLS_ALLOW_DEBUG_ENCLAVE_INSECURE": "1"}, "", "never accepted"),
        ({"SECRET_PROVISION_LISTENING_PORT": "x"}, "", "not a port"),
        ({}, "files/wrap-key", "pf_crypt gen-key"),
        ({}, "certs/server.crt", "cloister certs new"),
    ],
)
def test_what_is_missing_is_told_before_it_starts(
    setting: Setting,
    front: Front,
    variables: dict[str, str],
    missing: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(setting.directory)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing:
        (setting.directory / missing).unlink()
    assert run_command(command, [], "secret_prov_server_dcap") == 2
    assert words in capsys.readouterr().err


def test_only_the_digit_one_tolerates() -> None:
    strict = with_tolerances(measurements(ANY), {"RA_TLS_ALLOW_OUTDATED_TCB_INSECURE": "true"})
    assert strict.describe().endswith("TCB status UpToDate")
    both = {"RA_TLS_ALLOW_OUTDATED_TCB_INSECURE": "1", "RA_TLS_ALLOW_HW_CONFIG_NEEDED": "1"}
    lenient = with_tolerances(measurements(ANY), both).describe()
    for status in (
        "UpToDate",
        "OutOfDate",
        "ConfigurationNeeded",
        "OutOfDateConfigurationNeeded",
    ):
        assert status in lenient.replace(";", " ").split()
    assert "SWHardening" not in lenient


def test_anyone_at_all_is_said_to_be_no_security(setting: Setting, front: Front) -> None:
    port = front.start(**ANY)
    assert "WARNING: neither RA_TLS_MRSIGNER nor RA_TLS_MRENCLAVE" in front.announced
    assert setting.fetch(port, environment=PF_KEY, manifest="whatever")["key"] == KEY.hex()
    with pytest.raises(InputError, match="RA_TLS_MRENCLAVE"):
        measurements({"RA_TLS_MRSIGNER": "any"})
