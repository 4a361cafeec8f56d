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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister.errors import CloisterError, InputError

PROGRAM = ("pytorchexample.py", "networks.py")
TEMPLATE = "pytorch.manifest.template"
INPUTS = ("input.jpg", "classes.txt", "model.pt")
SIGNED = ("pytorch.manifest.sgx", "pytorch.index", "pytorch.sig")
KEY = "wrap-key"
BUNDLE = "platform.json"
LOG = "serve.log"
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


@dataclass(frozen=True)
class Command:
    """A command and where it runs."""

    words: Sequence[str]
    directory: Path

    def __str__(self) -> str:
        return " ".join(self.words).replace(" ".join(_CLOISTER), "cloister")


@dataclass(frozen=True)
class Ready:
    """The example in its three modes, ready to run again and again."""

    native: Command
    direct: Command
    enclave: Command
    environment: Mapping[str, str]


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
        self._work = work
        self._display = display
        self._address = f"localhost:{_free_port()}"
        self._mrenclave = ""
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
        with self.ready() as ready:
            # Once untimed, so that no mode pays for the first read of PyTorch from the disk.
            self._timed("owner", "warm up: load PyTorch once", ready.native)
            native = self._timed("owner", "run natively, for comparison", ready.native)
            direct = self._timed("builder", "run in direct mode (no enclave)", ready.direct)
            enclave = self._timed(
                "platform", "attest, get the key, run in the SIMULATED enclave", ready.enclave
            )
            decrypted = self._decrypt()
            attacks = list(self._attacks())
        answer = _lines(self._owner / "plaintext" / "result.txt")
        if _lines(self._builder / "plaintext" / "result.txt") != answer:
            raise CloisterError("direct mode gave another result than the native run")
        return Outcome(
            native=answer,
            decrypted=decrypted,
            native_seconds=native,
            direct_seconds=direct,
            enclave_seconds=enclave,
            mrenclave=self._mrenclave,
            attacks=attacks,
        )

    @contextlib.contextmanager
    def ready(self) -> Iterator[Ready]:
        """Prepare all roles and serve the key while the block runs."""
        self._gather()
        self._encrypt()
        self._build()
        self._trust_platform()
        program = str(self._builder / PROGRAM[0])
        with self._key_server():
            yield Ready(
                native=Command([sys.executable, program], self._owner / "plaintext"),
                direct=Command([*_CLOISTER, "run", "--mode", "direct", "pytorch"], self._builder),
                enclave=Command([*_CLOISTER, "run", "pytorch"], self._platform),
                environment=self._environment,
            )

    # Steps

    def _gather(self) -> None:
        plaintext = self._owner / "plaintext"
        with self._step("owner", "gather model, photograph and class names"):
            if not (self._example / "plaintext" / "model.pt").is_file():
                self._call(Command([sys.executable, "download-pretrained-model.py"], self._example))
            plaintext.mkdir()
            for name in INPUTS:
                shutil.copy(self._example / "plaintext" / name, plaintext)
        for name in (*PROGRAM, TEMPLATE):
            shutil.copy(self._example / name, self._builder)

    def _encrypt(self) -> None:
        with self._step("owner", "make a wrap key"):
            self._cloister("key", "new", KEY, cwd=self._owner)
        with self._step("owner", "encrypt the files, send them to the platform"):
            self._cloister("encrypt", "-k", KEY, "plaintext", "encrypted", cwd=self._owner)
            shutil.copytree(self._owner / "encrypted", self._platform / "encrypted")
        with self._step("owner", "make certificates for the key server"):
            self._cloister("certs", "new", "certs", cwd=self._owner)
            (self._builder / "certs").mkdir()
            shutil.copy(self._owner / "certs" / "ca.crt", self._builder / "certs")

    def _build(self) -> None:
        shutil.copytree(self._owner / "plaintext", self._builder / "plaintext")
        with self._step("builder", "render the manifest for direct mode"):
            direct = ("--mode", "direct", "-D", "data=plaintext")
            self._cloister("build", *direct, TEMPLATE, cwd=self._builder)
            direct_manifest = self._builder / "pytorch.manifest"
            rendered = direct_manifest.read_bytes()
        with self._step("builder", "hash, measure and sign the enclave") as timed:
            printed = self._cloister(
                "build", "--json", "-D", f"key_server={self._address}", TEMPLATE, cwd=self._builder
            )
            self._mrenclave = str(json.loads(printed)["mrenclave"])
            timed.detail = f"MRENCLAVE {self._mrenclave}"
            for name in (*PROGRAM, "certs", *SIGNED):
                _copy(self._builder / name, self._platform / name)
        direct_manifest.write_bytes(rendered)

    def _trust_platform(self) -> None:
        with self._step("platform", "export the SIMULATED platform's root and collateral"):
            self._cloister("platform", "export", BUNDLE, cwd=self._platform)
            shutil.copy(self._platform / BUNDLE, self._owner)

    @contextlib.contextmanager
    def _key_server(self) -> Iterator[None]:
        """Serve the key to the built enclave only, while the block runs."""
        shutil.copy(self._builder / "pytorch.sig", self._owner)
        command = [
            *_CLOISTER, "serve", "--key", KEY, "--enclave", "pytorch",
            "--cert", "certs/server.crt", "--cert-key", "certs/server.key",
            "--listen", self._address, "--trust-simulated", BUNDLE,
        ]  # fmt: skip
        log = self._owner / LOG
        with log.open("wb") as stream:
            server = subprocess.Popen(
                command, cwd=self._owner, env=self._environment, stdout=stream, stderr=stream
            )
            try:
                with self._step("owner", f"start the key server on {self._address}"):
                    _wait_for(self._address, server, log)
                yield
            finally:
                server.terminate()
                server.wait()

    def _decrypt(self) -> list[str]:
        with self._step("owner", "fetch the result and decrypt it"):
            shutil.copy(self._platform / "encrypted" / "result.txt", self._owner / "encrypted")
            text = self._cloister(
                "decrypt", "-k", KEY, "encrypted/result.txt", "-", cwd=self._owner
            )
        return text.splitlines()

    # Attacks

    def _attacks(self) -> Iterator[Attack]:
        yield self._attack("one byte of the encrypted model flipped", _flip_model)
        yield self._attack("the program changed after signing", _change_program)
        yield self._impostor("an enclave with another measurement asks for the key")

    def _attack(self, title: str, spoil: Callable[[Path], None]) -> Attack:
        """Spoil a copy of the platform's files; the run must fail and write no result."""
        attacked = self._work / "attacked"
        with self._step("attacker", title):
            shutil.copytree(self._platform, attacked)
            (attacked / "encrypted" / "result.txt").unlink()
            spoil(attacked)
            refusal = self._refused(Command([*_CLOISTER, "run", "pytorch"], attacked))
            if (attacked / "encrypted" / "result.txt").exists():
                raise CloisterError(f"attack succeeded: {title}: a result was written")
            shutil.rmtree(attacked)
        return Attack(title, refusal)

    def _impostor(self, title: str) -> Attack:
        """Sign another program with the same manifest and let it ask the owner's server."""
        impostor = self._work / "impostor"
        log = self._owner / LOG
        with self._step("attacker", title):
            impostor.mkdir()
            for name in (*PROGRAM, TEMPLATE, "certs"):
                _copy(self._builder / name, impostor / name)
            _change_program(impostor)
            self._cloister("build", "-D", f"key_server={self._address}", TEMPLATE, cwd=impostor)
            _copy(self._owner / "encrypted", impostor / "encrypted")
            before = len(_lines(log))
            refusal = self._refused(Command([*_CLOISTER, "run", "pytorch"], impostor))
            verdicts = [line for line in _lines(log)[before:] if "refused" in line.lower()]
            shutil.rmtree(impostor)
        return Attack(title, verdicts[0] if verdicts else refusal)

    # Helpers

    @contextlib.contextmanager
    def _step(self, role: str, title: str) -> Iterator[_Timed]:
        timed = _Timed()
        start = time.perf_counter()
        with self._display.running(role, title):
            yield timed
        timed.seconds = time.perf_counter() - start
        self._display.done(Step(role, title, timed.seconds, timed.detail))

    def _timed(self, role: str, title: str, command: Command) -> float:
        with self._step(role, title) as timed:
            self._call(command)
        return timed.seconds

    def _cloister(self, *arguments: str, cwd: Path) -> str:
        return self._call(Command([*_CLOISTER, *arguments], cwd))

    def _call(self, command: Command) -> str:
        """Run a step's command; return what it printed."""
        done = self._start(command)
        if done.returncode != 0:
            raise CloisterError(
                f"{command}: exit code {done.returncode}: {_last_line(done.stderr)}",
                hint="run `cloister demo --keep DIR` and repeat the command there",
            )
        return done.stdout

    def _refused(self, command: Command) -> str:
        """Run a command that must fail; return the line that says why."""
        done = self._start(command)
        if done.returncode == 0:
            raise CloisterError(f"attack succeeded: {command} in {command.directory.name}")
        ours = [line for line in done.stderr.splitlines() if line.startswith("cloister: ")]
        reasons = [line for line in ours if any(word in line for word in _REASONS)]
        if not reasons:
            raise CloisterError(f"the attack failed for another reason: {_last_line(done.stderr)}")
        return reasons[0].removeprefix("cloister: ")

    def _start(self, command: Command) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command.words,
            cwd=command.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


_REASONS = ("error: ", "tampered: ", "refused: ", "denied: ")


class _Timed:
    """Filled in when its step is done."""

    seconds = 0.0
    detail = ""


def _flip_model(directory: Path) -> None:
    model = directory / "encrypted" / "model.pt"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)


def _change_program(directory: Path) -> None:
    program = directory / PROGRAM[0]
    program.write_text(program.read_text() + '\nprint(open("/data/model.pt", "rb").read())\n')


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


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
