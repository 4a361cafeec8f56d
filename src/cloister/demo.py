"""The whole confidential workflow on one machine, as its roles would do it on three.

Owner, builder and platform each have a directory of their own, and files go from one to another
only where they would be sent. Every step is a command that the README shows, in a process of its
own; nothing here reaches around the command line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import CloisterError, InputError
from cloister.workflow import CLOISTER, Command, Display, Workflow, last_line, lines_of

PROGRAM = ("pytorchexample.py", "networks.py")
TEMPLATE = "pytorch.manifest.template"
INPUTS = ("input.jpg", "classes.txt", "model.pt")
SIGNED = ("pytorch.manifest.sgx", "pytorch.index", "pytorch.sig")
KEY = "wrap-key"
BUNDLE = "platform.json"
LOG = "serve.log"


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
class Ready:
    """The example in its three modes, ready to run again and again."""

    native: Command
    direct: Command
    enclave: Command
    environment: Mapping[str, str]


class Demonstration(Workflow):
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
        super().__init__(
            work, display, "run `cloister demo --keep DIR` and repeat the command there"
        )
        self._example = example
        self._mrenclave = ""
        self._owner = work / "owner"
        self._builder = work / "builder"
        self._platform = work / "platform"
        for role in (self._owner, self._builder, self._platform):
            role.mkdir(mode=0o700)

    def run(self) -> Outcome:
        """Do everything.

        Raises:
            CloisterError: a step failed that should succeed, or an attack succeeded.
        """
        with self.ready() as ready:
            # Once untimed, so that no mode pays for the first read of PyTorch from the disk.
            self.timed("owner", "warm up: load PyTorch once", ready.native)
            native = self.timed("owner", "run natively, for comparison", ready.native)
            direct = self.timed("builder", "run in direct mode (no enclave)", ready.direct)
            enclave = self.timed(
                "platform", "attest, get the key, run in the SIMULATED enclave", ready.enclave
            )
            decrypted = self._decrypt()
            attacks = list(self._attacks())
        answer = lines_of(self._owner / "plaintext" / "result.txt")
        if lines_of(self._builder / "plaintext" / "result.txt") != answer:
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
                direct=Command([*CLOISTER, "run", "--mode", "direct", "pytorch"], self._builder),
                enclave=Command([*CLOISTER, "run", "pytorch"], self._platform),
                environment=self.environment,
            )

    # Steps

    def _gather(self) -> None:
        plaintext = self._owner / "plaintext"
        with self.step("owner", "gather model, photograph and class names"):
            if not (self._example / "plaintext" / "model.pt").is_file():
                self.call(Command([sys.executable, "download-pretrained-model.py"], self._example))
            plaintext.mkdir()
            for name in INPUTS:
                shutil.copy(self._example / "plaintext" / name, plaintext)
        for name in (*PROGRAM, TEMPLATE):
            shutil.copy(self._example / name, self._builder)

    def _encrypt(self) -> None:
        with self.step("owner", "make a wrap key"):
            self.cloister("key", "new", KEY, cwd=self._owner)
        with self.step("owner", "encrypt the files, send them to the platform"):
            self.cloister("encrypt", "-k", KEY, "plaintext", "encrypted", cwd=self._owner)
            shutil.copytree(self._owner / "encrypted", self._platform / "encrypted")
        with self.step("owner", "make certificates for the key server"):
            self.cloister("certs", "new", "certs", cwd=self._owner)
            (self._builder / "certs").mkdir()
            shutil.copy(self._owner / "certs" / "ca.crt", self._builder / "certs")

    def _build(self) -> None:
        shutil.copytree(self._owner / "plaintext", self._builder / "plaintext")
        with self.step("builder", "render the manifest for direct mode"):
            direct = ("--mode", "direct", "-D", "data=plaintext")
            self.cloister("build", *direct, TEMPLATE, cwd=self._builder)
            direct_manifest = self._builder / "pytorch.manifest"
            rendered = direct_manifest.read_bytes()
        with self.step("builder", "hash, measure and sign the enclave") as timed:
            printed = self.cloister(
                "build", "--json", "-D", f"key_server={self.address}", TEMPLATE, cwd=self._builder
            )
            self._mrenclave = str(json.loads(printed)["mrenclave"])
            timed.detail = f"MRENCLAVE {self._mrenclave}"
            for name in (*PROGRAM, "certs", *SIGNED):
                _copy(self._builder / name, self._platform / name)
        direct_manifest.write_bytes(rendered)

    def _trust_platform(self) -> None:
        with self.step("platform", "export the SIMULATED platform's root and collateral"):
            self.cloister("platform", "export", BUNDLE, cwd=self._platform)
            shutil.copy(self._platform / BUNDLE, self._owner)

    def _key_server(self) -> contextlib.AbstractContextManager[None]:
        """Serve the key to the built enclave only, while the block runs."""
        shutil.copy(self._builder / "pytorch.sig", self._owner)
        return self.key_server(
            self._owner, KEY, "--enclave", "pytorch", "--trust-simulated", BUNDLE
        )

    def _decrypt(self) -> list[str]:
        with self.step("owner", "fetch the result and decrypt it"):
            shutil.copy(self._platform / "encrypted" / "result.txt", self._owner / "encrypted")
            text = self.cloister("decrypt", "-k", KEY, "encrypted/result.txt", "-", cwd=self._owner)
        return text.splitlines()

    # Attacks

    def _attacks(self) -> Iterator[Attack]:
        yield self._attack("one byte of the encrypted model flipped", _flip_model)
        yield self._attack("the program changed after signing", _change_program)
        yield self._impostor("an enclave with another measurement asks for the key")

    def _attack(self, title: str, spoil: Callable[[Path], None]) -> Attack:
        """Spoil a copy of the platform's files; the run must fail and write no result."""
        attacked = self.work / "attacked"
        with self.step("attacker", title):
            shutil.copytree(self._platform, attacked)
            (attacked / "encrypted" / "result.txt").unlink()
            spoil(attacked)
            refusal = self._refused(Command([*CLOISTER, "run", "pytorch"], attacked))
            if (attacked / "encrypted" / "result.txt").exists():
                raise CloisterError(f"attack succeeded: {title}: a result was written")
            shutil.rmtree(attacked)
        return Attack(title, refusal)

    def _impostor(self, title: str) -> Attack:
        """Sign another program with the same manifest and let it ask the owner's server."""
        impostor = self.work / "impostor"
        log = self._owner / LOG
        with self.step("attacker", title):
            impostor.mkdir()
            for name in (*PROGRAM, TEMPLATE, "certs"):
                _copy(self._builder / name, impostor / name)
            _change_program(impostor)
            self.cloister("build", "-D", f"key_server={self.address}", TEMPLATE, cwd=impostor)
            _copy(self._owner / "encrypted", impostor / "encrypted")
            before = len(lines_of(log))
            refusal = self._refused(Command([*CLOISTER, "run", "pytorch"], impostor))
            verdicts = [line for line in lines_of(log)[before:] if "refused" in line.lower()]
            shutil.rmtree(impostor)
        return Attack(title, verdicts[0] if verdicts else refusal)

    # Helpers

    def _refused(self, command: Command) -> str:
        """Run a command that must fail; return the line that says why."""
        done = self.start(command)
        if done.returncode == 0:
            raise CloisterError(f"attack succeeded: {command} in {command.directory.name}")
        ours = [line for line in done.stderr.splitlines() if line.startswith("cloister: ")]
        reasons = [line for line in ours if any(word in line for word in _REASONS)]
        if not reasons:
            raise CloisterError(f"the attack failed for another reason: {last_line(done.stderr)}")
        return reasons[0].removeprefix("cloister: ")


_REASONS = ("error: ", "tampered: ", "refused: ", "denied: ")


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
