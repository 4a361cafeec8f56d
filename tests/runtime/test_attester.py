"""The process that holds the enclave: what it answers, and what happens when it does not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from applications import CLOISTER, KEY, App
from cloister.errors import EnclaveStartError, PlatformError, UnsupportedByPlatformError
from cloister.platforms.base import SealingPolicy
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.runtime.attester import Attester, HeldEnclave, SealingRequest, Started
from cloister.runtime.load import enclave_program
from processes import children, sockets, wait_until_gone
from signing import IMAGE, PARAMETERS, signed

DATA = b"d" * 64


@contextlib.contextmanager
def held(directory: Path, *sealing: SealingRequest) -> Iterator[HeldEnclave]:
    def start() -> Started:
        enclave = SimulatedPlatform(directory).start(
            manifest=b"manifest", sigstruct=signed(b"manifest").pack(), image=IMAGE, **PARAMETERS
        )
        return Started(enclave, b"digest", "a description", sealing)

    with contextlib.closing(Attester(start)) as attester:
        yield attester.enclave()


def test_it_answers_as_the_enclave_itself(tmp_path: Path) -> None:
    SimulatedPlatform(tmp_path).export()  # makes the device
    itself = SimulatedPlatform(tmp_path).start(
        manifest=b"manifest", sigstruct=signed(b"manifest").pack(), image=IMAGE, **PARAMETERS
    )
    asked = SealingRequest(SealingPolicy.MRSIGNER, flags_mask=3)
    with held(tmp_path, asked) as enclave:
        for name in ("simulated", "mrenclave", "mrsigner", "isv_prod_id", "isv_svn", "debug"):
            assert getattr(enclave, name) == getattr(itself, name)
        assert (enclave.digest, enclave.description) == (b"digest", "a description")
        assert enclave.event_log == b""
        assert enclave.target_info() == itself.target_info()
        enclave.verify_report(enclave.report(enclave.target_info(), DATA))
        assert DATA in enclave.quote(DATA)
        for policy in SealingPolicy:
            assert enclave.sealing_key(policy) == itself.sealing_key(policy)
            assert enclave.sealing_key(policy, flags_mask=3) == itself.sealing_key(
                policy, flags_mask=3
            )


def test_what_starting_raises_is_raised_here() -> None:
    def refuse() -> Started:
        raise EnclaveStartError("no such enclave", hint="another one")

    with contextlib.closing(Attester(refuse)) as attester:
        with pytest.raises(EnclaveStartError, match="no such enclave") as caught:
            attester.enclave()
        assert caught.value.hint == "another one"


def test_a_missing_sealing_key_keeps_its_reason(tmp_path: Path) -> None:
    def start() -> Started:
        enclave = SimulatedPlatform(tmp_path).start(
            manifest=b"manifest", sigstruct=signed(b"manifest").pack(), image=IMAGE, **PARAMETERS
        )

        def refuse(*_: object, **__: object) -> bytes:
            raise UnsupportedByPlatformError("none here", hint="elsewhere")

        setattr(enclave, "sealing_key", refuse)  # noqa: B010  (in place of a method)
        return Started(enclave, b"", "", (SealingRequest(SealingPolicy.MRENCLAVE),))

    with contextlib.closing(Attester(start)) as attester:
        enclave = attester.enclave()
        for policy in SealingPolicy:
            with pytest.raises(UnsupportedByPlatformError, match="none here") as caught:
                enclave.sealing_key(policy)
            assert caught.value.hint == "elsewhere"


def test_other_files_than_the_measured_ones_do_not_run(app: App) -> None:
    """The host exchanges the manifest between the two processes that load it."""
    app.build_shell()
    program = enclave_program(app.directory / "app", (), {}, "simulated")
    measured = program.signed.digest
    app.settings["sgx.allowed_files"] = '["file:everything"]'
    app.build_shell()
    other = enclave_program(app.directory / "app", (), {}, "simulated")
    with (
        contextlib.closing(other.start(SimulatedPlatform.of_this_machine(), None)) as enclave,
        pytest.raises(EnclaveStartError, match="changed while they were loaded"),
    ):
        other.confirm(enclave, measured)


def holder(process: int) -> int:
    """The child that holds the enclave: the runtime forks it before all others."""
    return children(process)[0]


def test_a_run_survives_the_process_that_holds_its_enclave(app: App) -> None:
    app.settings["sgx.remote_attestation"] = '"dcap"'
    app.build_shell()
    script = "echo ready; read x; cat /dev/attestation/quote || echo refused; exit 7"
    with subprocess.Popen(
        [*CLOISTER, "run", "app", "-c", script], cwd=app.directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.kill(holder(run.pid), signal.SIGKILL)
        output, complaints = run.communicate("\n", 60)
    assert output == "refused\n"
    assert "/dev/attestation/quote: the process that holds the enclave has died" in complaints
    assert "Traceback" not in complaints
    assert run.returncode == 7


def test_signals_for_the_program_are_not_for_the_enclave(app: App) -> None:
    """Batch schedulers signal all processes of a job."""
    app.settings["sgx.remote_attestation"] = '"dcap"'
    app.build_shell()
    script = "trap 'echo caught' USR1; echo ready; read x; wc -c < /dev/attestation/quote"
    with subprocess.Popen(
        [*CLOISTER, "run", "app", "-c", script], cwd=app.directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.killpg(run.pid, signal.SIGUSR1)
        output, complaints = run.communicate("\n", 60)
    assert "caught" in output
    assert any(word.isdigit() and int(word) > 1000 for word in output.split()), complaints


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what these processes have open")
def test_nothing_but_the_runtime_reaches_the_enclave(app: App) -> None:
    """Its other processes, which face the program, do not hold the channel for keys."""
    app.build_shell()
    with subprocess.Popen(
        [*CLOISTER, "run", "app", "-c", "echo ready; read x"], cwd=app.directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        others = [one for one in children(run.pid) if one != holder(run.pid)]
        ours = sockets(run.pid)
        assert len(ours) >= 2
        assert others
        for other in others:
            assert not ours & sockets(other)
        run.communicate("\n", 60)


def test_an_error_of_the_host_is_told_with_its_file(app: App, tmp_path: Path) -> None:
    app.build_shell()
    (tmp_path / "file").write_text("no directory")
    done = app.cloister(
        "run", "app", "-c", "true", expect=1,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path / "file")},
    )  # fmt: skip
    assert f"{tmp_path}/file/cloister" in done.stderr
    assert "Not a directory" in done.stderr
    assert "internal error" not in done.stderr


def test_what_lies_beside_quotes_is_what_lies_there_now(tmp_path: Path) -> None:
    """The log of a TDX virtual machine grows when other applications start there."""
    log = tmp_path / "log"
    log.write_bytes(b"one")

    class Logging(SimulatedEnclave):
        @property
        def event_log(self) -> bytes:  # type: ignore[override]
            return log.read_bytes()

    def start() -> Started:
        enclave = SimulatedPlatform(tmp_path / "device").start(
            manifest=b"manifest", sigstruct=signed(b"manifest").pack(), image=IMAGE, **PARAMETERS
        )
        enclave.__class__ = Logging
        return Started(enclave, b"", "")

    with contextlib.closing(Attester(start)) as attester:
        enclave = attester.enclave()
        assert enclave.event_log == b"one"
        log.write_bytes(b"two")
        assert enclave.event_log == b"two"


def test_nobody_waits_for_a_key_server_that_does_not_answer(app: App) -> None:
    """Ctrl-C ends a run whose key server is stuck, and leaves no process behind."""
    app.cloister("certs", "new", "certs")
    app.mount("/certs", "file:certs")
    app.trusted.append("file:certs/ca.crt")
    (app.directory / "secret").mkdir()
    app.mount("/secret", "file:secret", "encrypted")
    with socket.create_server(("localhost", 0)) as server:
        app.settings |= {
            "sgx.remote_attestation": '"dcap"',
            "loader.env.SECRET_PROVISION_CONSTRUCTOR": '"true"',
            "loader.env.SECRET_PROVISION_SET_KEY": '"default"',
            "loader.env.SECRET_PROVISION_CA_CHAIN_PATH": '"/certs/ca.crt"',
            "loader.env.SECRET_PROVISION_SERVERS": f'"localhost:{server.getsockname()[1]}"',
        }
        app.build_shell()
        with subprocess.Popen(
            [*CLOISTER, "run", "app", "-c", "echo ran"], cwd=app.directory, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as run:  # fmt: skip
            connection, _ = server.accept()
            with connection:
                forked = children(run.pid)
                assert holder(run.pid) in forked
                begun = time.monotonic()
                run.send_signal(signal.SIGINT)
                output, complaints = run.communicate(timeout=20)
                assert time.monotonic() - begun < 10
    assert run.returncode == 130
    assert output == ""
    assert "interrupted" in complaints
    wait_until_gone(forked)


def test_a_key_that_came_is_told_when_the_next_one_does_not(app: App, tmp_path: Path) -> None:
    app.cloister("certs", "new", "certs")
    (app.directory / "wrap-key").write_bytes(bytes.fromhex(KEY))
    (app.directory / "wrap-key").chmod(0o600)
    app.mount("/certs", "file:certs")
    app.trusted.append("file:certs/ca.crt")
    for name in ("one", "two"):
        (app.directory / name).mkdir()
        app.mount(f"/{name}", f"file:{name}", "encrypted", key_name=name)
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        nobody = closed.getsockname()[1]
        with socket.create_server(("localhost", 0)) as probe:
            port = probe.getsockname()[1]
        keys = ", ".join(
            f'{{ name = "{name}", servers = "localhost:{at}", ca = "/certs/ca.crt" }}'
            for name, at in (("one", port), ("two", nobody))
        )
        app.settings |= {"sgx.remote_attestation": '"dcap"', "cloister.keys": f"[{keys}]"}
        app.build_shell()
        app.cloister("platform", "export", "platform.json")
        with key_server(app, port):
            done = app.run_shell("echo ran", expect=1)
    assert f"key one released by localhost:{port}" in done.stderr
    assert "no key server released the key two" in done.stderr
    assert done.stdout == ""


def test_a_key_that_is_on_its_way_is_not_called_missing(app: App) -> None:
    """The sandbox looks at the mount of a single file while key servers are still asked."""
    app.cloister("certs", "new", "certs")
    (app.directory / "wrap-key").write_bytes(bytes.fromhex(KEY))
    (app.directory / "wrap-key").chmod(0o600)
    (app.directory / "plain").write_text("secret content")
    app.cloister("encrypt", "-k", "wrap-key", "plain", "secret")
    app.mount("/certs", "file:certs")
    app.trusted.append("file:certs/ca.crt")
    app.mount("/scratch", kind="tmpfs")
    app.mount("/scratch/secret", "file:secret", "encrypted")
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    app.settings |= {
        "sgx.remote_attestation": '"dcap"',
        "loader.env.SECRET_PROVISION_CONSTRUCTOR": '"true"',
        "loader.env.SECRET_PROVISION_SET_KEY": '"default"',
        "loader.env.SECRET_PROVISION_CA_CHAIN_PATH": '"/certs/ca.crt"',
        "loader.env.SECRET_PROVISION_SERVERS": f'"localhost:{port}"',
    }
    app.build_shell()
    app.cloister("platform", "export", "platform.json")
    with key_server(app, port):
        done = app.run_shell("wc -c < /scratch/secret; cat /scratch/secret")
    assert done.stdout == "14\nsecret content"
    assert "is not set" not in done.stderr


@contextlib.contextmanager
def key_server(app: App, port: int) -> Iterator[None]:
    command = [
        *CLOISTER, "serve", "--key", "wrap-key", "--enclave", "app", "--listen",
        f"localhost:{port}", "--cert", "certs/server.crt", "--cert-key", "certs/server.key",
        "--trust-simulated", "platform.json",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=app.directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            wait_for(port)
            yield
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(port)


def test_a_dead_process_is_no_answer(tmp_path: Path) -> None:
    with held(tmp_path) as enclave:
        child = children(os.getpid())[-1]
        os.kill(child, signal.SIGKILL)
        wait_until_gone([child])
        for _ in range(2):
            with pytest.raises(PlatformError, match="has died"):
                enclave.quote(DATA)
