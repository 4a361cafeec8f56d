"""The whole confidential workflow on one machine, as its roles would do it on three.

Owner, builder and platform each have a directory of their own, and files go from one to another
only where they would be sent. Every step is a command that the README shows, in a process of its
own; nothing here reaches around the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister.errors import CloisterError, InputError

PROGRAM = ("pytorchexample.py", "networks.py")
TEMPLATE = "pytorch.manifest.template"
INPUTS = ("input.jpg", "classes.txt", "model.pt")
_CLOISTER = (sys.executable, "-m", "cloister")
_SERVER_START_SECONDS = 30.0


@dataclass(frozen=True)
class Step:
    """One finished step."""

    role: str
    title: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Attack:
    """One attack and the line with which it failed."""

    title: str
    refusal: str


@dataclass(frozen=True)
class Outcome:
    """What the demonstration showed."""

    native: list[str]
    decrypted: list[str]
    native_seconds: float
    direct_seconds: float
    enclave_seconds: float
    mrenclave: str
    attacks: list[Attack]


class Display(Protocol):
    """Where the steps are shown."""

    def running(self, role: str, title: str) -> contextlib.AbstractContextManager[None]:
        """Show that a step is being done."""

    def done(self, step: Step) -> None:
        """Show a finished step."""


class Demonstration:
    """The workflow over one example.

    Args:
        example: directory with the program, its manifest template and ``plaintext/``.
        work: an empty directory for the three roles.
        display: where the steps are shown.
    """

    def __init__(self, example: Path, work: Path, display: Display) -> None:
        missing = [n for n in (*PROGRAM, TEMPLATE) if not (example / n).is_file()]
        if missing:
            raise InputError(
                f"{example}: {missing[0]} is not there; expected the PyTorch example",
                hint="run this in a checkout of Cloister, or name the directory with --example",
            )
        self._example = example
        self._display = display
        self._owner = work / "owner"
        self._builder = work / "builder"
        self._platform = work / "platform"
        for role in (self._owner, self._builder, self._platform):
            role.mkdir(mode=0o700)
        # The roles' own keys live and die with the demonstration; the hash cache may stay.
        self._environment = {
            **os.environ,
            "XDG_CONFIG_HOME": str(work / "config"),
            "XDG_DATA_HOME": str(work / "data"),
        }

    def run(self) -> Outcome:
        """Do everything.

        Raises:
            CloisterError: a step failed that should succeed, or an attack succeeded.
        """
        plaintext = self._prepare()
        native_seconds = self._native(plaintext)
        direct_seconds = self._direct(plaintext)
        key = self._encrypt(plaintext)
        mrenclave = self._build()
        port_file = self._trust_platform()
        with self._key_server(key, port_file) as server_log:
            enclave_seconds = self._confidential()
            decrypted = self._decrypt(key)
            attacks = list(self._attacks(server_log))
        return Outcome(
            native=_lines(plaintext / "result.txt"),
            decrypted=decrypted,
            native_seconds=native_seconds,
            direct_seconds=direct_seconds,
            enclave_seconds=enclave_seconds,
            mrenclave=mrenclave,
            attacks=attacks,
        )

    # Steps

    def _prepare(self) -> Path:
        plaintext = self._owner / "plaintext"
        with self._step("owner", "gather model, photograph and class names"):
            model = self._example / "plaintext" / "model.pt"
            if not model.is_file():
                self._call([sys.executable, "download-pretrained-model.py"], cwd=self._example)
            plaintext.mkdir()
            for name in INPUTS:
                shutil.copy(self._example / "plaintext" / name, plaintext)
            for name in PROGRAM:
                shutil.copy(self._example / name, self._builder)
            shutil.copy(self._example / TEMPLATE, self._builder)
        return plaintext

    def _native(self, plaintext: Path) -> float:
        program = self._builder / PROGRAM[0]
        # Once untimed, so that no mode pays for the first read of PyTorch from the disk.
        with self._step("owner", "warm up: load PyTorch once"):
            self._call([sys.executable, str(program)], cwd=plaintext)
        with self._step("owner", "run natively, for comparison") as timed:
            self._call([sys.executable, str(program)], cwd=plaintext)
        return timed.seconds

    def _direct(self, plaintext: Path) -> float:
        data = self._builder / "plaintext"
        shutil.copytree(plaintext, data)
        (data / "result.txt").unlink()
        with self._step("builder", "render the manifest for direct mode"):
            self._cloister(
                "build", "--mode", "direct", "-D", "data=plaintext", TEMPLATE, cwd=self._builder
            )
        with self._step("builder", "run in direct mode (no enclave)") as timed:
            self._cloister("run", "--mode", "direct", "pytorch", cwd=self._builder)
        if _lines(data / "result.txt") != _lines(plaintext / "result.txt"):
            raise CloisterError("direct mode gave another result than the native run")
        shutil.rmtree(data)
        return timed.seconds

    def _encrypt(self, plaintext: Path) -> Path:
        key = self._owner / "wrap-key"
        with self._step("owner", "make a wrap key"):
            self._cloister("key", "new", "wrap-key", cwd=self._owner)
        with self._step("owner", "encrypt the files, send them to the platform"):
            inputs = self._owner / "inputs"
            inputs.mkdir()
            for name in INPUTS:
                (plaintext / name).rename(inputs / name)
            self._cloister("encrypt", "-k", "wrap-key", "inputs", "encrypted", cwd=self._owner)
            shutil.copytree(self._owner / "encrypted", self._platform / "encrypted")
        with self._step("owner", "make certificates for the key server"):
            self._cloister("certs", "new", "certs", cwd=self._owner)
            (self._builder / "certs").mkdir()
            shutil.copy(self._owner / "certs" / "ca.crt", self._builder / "certs")
        return key

    def _build(self) -> str:
        address = f"localhost:{_free_port()}"
        self._address = address
        with self._step("builder", "hash, measure and sign the enclave") as timed:
            printed = self._cloister(
                "build", "--json", "-D", f"key_server={address}", TEMPLATE, cwd=self._builder
            )
            mrenclave = str(json.loads(printed)["mrenclave"])
            timed.detail = f"MRENCLAVE {mrenclave}"
            self._publish(self._builder, self._platform)
        return mrenclave

    def _publish(self, source: Path, target: Path) -> None:
        """Send the program and its signed manifest, as a builder would."""
        for path in source.iterdir():
            if path.name != TEMPLATE and path.name != "pytorch.manifest":
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, target / path.name)

    def _trust_platform(self) -> Path:
        with self._step("platform", "export the SIMULATED platform's root and collateral"):
            self._cloister("platform", "export", "platform.json", cwd=self._platform)
            shutil.copy(self._platform / "platform.json", self._owner)
        return self._owner / "platform.json"

    @contextlib.contextmanager
    def _key_server(self, key: Path, bundle: Path) -> Iterator[Path]:
        """Serve the key to the built enclave only, while the block runs."""
        log = self._owner / "serve.log"
        shutil.copy(self._builder / "pytorch.sig", self._owner)
        command = [
            *_CLOISTER, "serve", "--key", key.name, "--enclave", "pytorch",
            "--cert", "certs/server.crt", "--cert-key", "certs/server.key",
            "--listen", self._address, "--trust-simulated", bundle.name,
        ]  # fmt: skip
        with log.open("wb") as stream:
            server = subprocess.Popen(
                command, cwd=self._owner, env=self._environment, stdout=stream, stderr=stream
            )
            try:
                with self._step("owner", f"start the key server on {self._address}"):
                    _wait_for(self._address, server, log)
                yield log
            finally:
                server.terminate()
                server.wait()

    def _confidential(self) -> float:
        with self._step("platform", "attest, get the key, run in the SIMULATED enclave") as timed:
            self._cloister("run", "pytorch", cwd=self._platform)
        return timed.seconds

    def _decrypt(self, key: Path) -> list[str]:
        with self._step("owner", "fetch the result and decrypt it"):
            encrypted = self._owner / "encrypted" / "result.txt"
            shutil.copy(self._platform / "encrypted" / "result.txt", encrypted)
            text = self._cloister(
                "decrypt", "-k", key.name, "encrypted/result.txt", "-", cwd=self._owner
            )
        return text.splitlines()

    # Attacks

    def _attacks(self, server_log: Path) -> Iterator[Attack]:
        yield self._attack("one byte of the encrypted model flipped", self._flip_model)
        yield self._attack("the program changed after signing", self._change_program)
        with self._step("attacker", "an enclave with another measurement asks for the key"):
            yield self._impostor(server_log)

    def _attack(self, title: str, spoil: object) -> Attack:
        assert callable(spoil)  # noqa: S101
        attacked = self._platform.with_name("attacked")
        with self._step("attacker", title):
            shutil.copytree(self._platform, attacked)
            (attacked / "encrypted" / "result.txt").unlink()
            spoil(attacked)
            refusal = self._refused("run", "pytorch", cwd=attacked)
            if (attacked / "encrypted" / "result.txt").exists():
                raise CloisterError(f"attack succeeded: {title}: a result was written")
            shutil.rmtree(attacked)
        return Attack(title, refusal)

    @staticmethod
    def _flip_model(directory: Path) -> None:
        model = directory / "encrypted" / "model.pt"
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)

    @staticmethod
    def _change_program(directory: Path) -> None:
        program = directory / PROGRAM[0]
        program.write_text(program.read_text() + '\nprint(open("/data/model.pt", "rb").read())\n')

    def _impostor(self, server_log: Path) -> Attack:
        impostor = self._platform.with_name("impostor")
        impostor.mkdir()
        shutil.copytree(self._builder / "certs", impostor / "certs")
        for name in (*PROGRAM, TEMPLATE):
            shutil.copy(self._builder / name, impostor)
        self._change_program(impostor)
        self._cloister("build", "-D", f"key_server={self._address}", TEMPLATE, cwd=impostor)
        shutil.copytree(self._owner / "encrypted", impostor / "encrypted")
        before = len(_lines(server_log))
        refusal = self._refused("run", "pytorch", cwd=impostor)
        shutil.rmtree(impostor)
        verdict = [line for line in _lines(server_log)[before:] if "refused" in line.lower()]
        return Attack(
            "an enclave with another measurement asks for the key", (verdict or [refusal])[0]
        )

    # Helpers

    @contextlib.contextmanager
    def _step(self, role: str, title: str) -> Iterator[_Timed]:
        timed = _Timed()
        start = time.perf_counter()
        with self._display.running(role, title):
            yield timed
        timed.seconds = time.perf_counter() - start
        self._display.done(Step(role, title, timed.seconds, timed.detail))

    def _cloister(self, *arguments: str, cwd: Path) -> str:
        return self._call([*_CLOISTER, *arguments], cwd=cwd)

    def _call(self, command: list[str], cwd: Path) -> str:
        """Run a step's command; return what it printed."""
        done = self._start(command, cwd)
        if done.returncode != 0:
            shown = " ".join(command).replace(" ".join(_CLOISTER), "cloister")
            raise CloisterError(
                f"{shown}: exit code {done.returncode}: {_last_line(done.stderr)}",
                hint="run `cloister demo --keep DIR` and repeat the command there",
            )
        return done.stdout

    def _refused(self, *arguments: str, cwd: Path) -> str:
        """Run a command that must fail; return the line that says why."""
        done = self._start([*_CLOISTER, *arguments], cwd)
        if done.returncode == 0:
            raise CloisterError(f"attack succeeded: cloister {' '.join(arguments)} in {cwd.name}")
        ours = [line for line in done.stderr.splitlines() if line.startswith("cloister: ")]
        reasons = [line for line in ours if any(word in line for word in _REASONS)]
        if not reasons:
            raise CloisterError(f"the attack failed for another reason: {_last_line(done.stderr)}")
        return reasons[0].removeprefix("cloister: ")

    def _start(self, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=self._environment, capture_output=True, text=True, check=False
        )


_REASONS = ("error: ", "tampered: ", "refused: ", "denied: ")


class _Timed:
    """Filled in when its step is done."""

    seconds = 0.0
    detail = ""


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import socket

    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _SERVER_START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise CloisterError(f"cloister serve: {_last_line(log.read_text())}")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    raise CloisterError(f"cloister serve: does not answer on {address}")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _last_line(text: str) -> str:
    """Return the line that tells most: an error of ours, else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines or ["no message"])[-1]
