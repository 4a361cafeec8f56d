"""A project tried out on one machine: natively and in its enclave, with the same results."""

from __future__ import annotations

import contextlib
import datetime
import filecmp
import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloister.errors import CloisterError, InputError
from cloister.project.sorting import INSIDE
from cloister.workflow import CLOISTER, Command, Display, Workflow, free_port

_HINT = "run the command by hand, in the project's directory; its README.md has them all"
_SUFFIX = ".manifest.template"
_PORT = "--port"
_DESCRIPTION = "/openapi.json"


@dataclass(frozen=True)
class Tried:
    """What a trial showed.

    Attributes:
        mrenclave: measurement of the enclave.
        native_seconds, enclave_seconds: wall time of the program's runs.
        results: files that both runs wrote or changed, the same to the byte; of a service, the
            description that both gave of themselves.
        different: what differs.
    """

    mrenclave: str
    native_seconds: float
    enclave_seconds: float
    results: list[str]
    different: list[str]


class Trial(Workflow):
    """Tries a project that ``cloister init`` made.

    Args:
        project: its directory; nothing in it is changed.
        work: an empty directory.
        display: where the steps are shown.

    Raises:
        InputError: it is no such project.
    """

    def __init__(self, project: Path, work: Path, display: Display) -> None:
        super().__init__(work, display, _HINT)
        templates = sorted(project.glob(f"*{_SUFFIX}"))
        if len(templates) != 1 or not (project / "app").is_dir():
            raise InputError(
                f"{project}: expected one *{_SUFFIX}, and app/ beside it",
                hint="name the directory that `cloister init` made",
            )
        self.app = templates[0].name.removesuffix(_SUFFIX)
        self._project = work / "project"
        shutil.copytree(project, self._project, symlinks=True)

    def run(self) -> Tried:
        """Do everything.

        Raises:
            CloisterError: a step failed.
        """
        manifest = self._manifest()
        native = self._native_directory(manifest)
        # "./" because a name that begins with a dash is no option of Python.
        words = [
            f"./{os.path.relpath(w, INSIDE)}" if w.startswith(f"{INSIDE}/") else w
            for w in manifest.argv
        ]
        return self._try_service(words, native) if _PORT in words else self._try(words, native)

    def _try(self, words: list[str], native: Path) -> Tried:
        """Try a program that ends: what both runs wrote must be the same."""
        native_seconds = self.timed("owner", "run natively, for comparison", Command(words, native))
        mrenclave = self._prepare()
        with self._key_server():
            title = "attest, get the key, run in the SIMULATED enclave"
            enclave_seconds = self.timed("platform", title, self._enclave())
        with self.step("owner", "decrypt the results and compare them"):
            self.cloister("decrypt", "-k", "wrap-key", "encrypted", "decrypted", cwd=self._project)
        same, different = self._compared(native)
        return Tried(mrenclave, native_seconds, enclave_seconds, same, different)

    def _try_service(self, words: list[str], native: Path) -> Tried:
        """Try a web application: its description of itself must be the same."""
        plain, attested = f"localhost:{free_port()}", f"localhost:{free_port()}"
        words[words.index(_PORT) + 1] = plain.rpartition(":")[2]
        command = Command(words, native)
        with self.background("owner", "start natively", command, self.work / "native.log", plain):
            start = time.perf_counter()
            expected = _get(f"http://{plain}{_DESCRIPTION}", True)
            native_seconds = time.perf_counter() - start
        mrenclave = self._prepare("-D", f"listen={attested.rpartition(':')[2]}")
        title, log = "attest, get the key, start in the SIMULATED enclave", self.work / "run.log"
        with (
            self._key_server(),
            self.background("platform", title, self._enclave(), log, attested),
            self.step("client", "verify the enclave, then ask it"),
        ):
            start = time.perf_counter()
            context = _verifying(bytes.fromhex(mrenclave), self._project / "platform.json")
            answer = _get(f"https://{attested}{_DESCRIPTION}", context)
            enclave_seconds = time.perf_counter() - start
        same, different = ([_DESCRIPTION], []) if answer == expected else ([], [_DESCRIPTION])
        return Tried(mrenclave, native_seconds, enclave_seconds, same, different)

    def _enclave(self) -> Command:
        words = [*CLOISTER, "run", "--platform", "simulated", self.app]
        return Command(words, self._project)

    def _key_server(self) -> contextlib.AbstractContextManager[None]:
        permitted = ("--enclave", self.app, "--trust-simulated", "platform.json")
        return self.key_server(self._project, "wrap-key", *permitted)

    def _native_directory(self, manifest: _Manifest) -> Path:
        """Put code, data and what they reach by ``../`` where they lie in the enclave."""
        native = self.work / "native"
        shutil.copytree(self._project / "plaintext", native)
        shutil.copytree(self._project / "app", native, dirs_exist_ok=True)
        for place, host in manifest.moved:
            beside = self.work / place.lstrip("/")
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.symlink_to(host)
        return native

    def _manifest(self) -> _Manifest:
        """Return what the manifest starts and what it shows at other paths than the host's."""
        printed = self.cloister(
            "manifest", "render", "-D", "data=plaintext", f"{self.app}{_SUFFIX}", cwd=self._project
        )
        return _parsed(printed)

    def _prepare(self, *definitions: str) -> str:
        with self.step("owner", "encrypt the inputs"):
            self.cloister("encrypt", "-k", "wrap-key", "plaintext", "encrypted", cwd=self._project)
        with self.step("builder", "hash, measure and sign the enclave") as timed:
            words = ("--json", "-D", f"key_server={self.address}", *definitions)
            printed = self.cloister("build", *words, f"{self.app}{_SUFFIX}", cwd=self._project)
            mrenclave = str(json.loads(printed)["mrenclave"])
            timed.detail = f"MRENCLAVE {mrenclave}"
        with self.step("platform", "export the SIMULATED platform's root and collateral"):
            self.cloister("platform", "export", "platform.json", cwd=self._project)
        return mrenclave

    def _compared(self, native: Path) -> tuple[list[str], list[str]]:
        """Return the files that a run wrote: those that are the same in both, and the others."""
        plaintext, decrypted = self._project / "plaintext", self._project / "decrypted"
        app = self._project / "app"
        code = set(_names(app))
        same, different = [], []
        for name in sorted({*_names(native), *_names(decrypted)} - code):
            pair = native / name, decrypted / name
            if not all(path.is_file() for path in pair) or not filecmp.cmp(*pair, shallow=False):
                different.append(name)
            elif not _unchanged(plaintext / name, pair[0]):
                same.append(name)
        return same, different


def _get(url: str, verify: bool | ssl.SSLContext) -> object:
    import httpx

    with httpx.Client(verify=verify, timeout=30) as client:
        answer: object = client.get(url).raise_for_status().json()
    return answer


def _verifying(mrenclave: bytes, bundle: Path) -> ssl.SSLContext:
    """Return a context that talks only to this enclave on this SIMULATED platform."""
    from cloister.attestation import SimulatedBundle
    from cloister.attestation.policy import MrEnclave
    from cloister.attestation.trust import Authenticator, Trust
    from cloister.ratls.peer import judging_context
    from cloister.ratls.programs import expect

    simulated = SimulatedBundle.from_json(bundle.read_text(encoding="utf-8"))
    trust = Trust(((simulated.anchor, simulated.collateral),))
    return judging_context(expect(MrEnclave(mrenclave), Authenticator(trust, _now)))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


class _Manifest(NamedTuple):
    """Of a rendered manifest: the command, and files of the host that are moved, with the host's
    absolute paths."""

    argv: list[str]
    moved: list[tuple[str, str]]


def _parsed(text: str) -> _Manifest:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        manifest = tomllib.loads(text)
        argv = [str(word) for word in manifest["loader"]["argv"]]
        hosts = [
            (m["path"], m.get("uri", "").removeprefix("file:")) for m in manifest["fs"]["mounts"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CloisterError("the manifest has no loader.argv or no fs.mounts") from error
    return _Manifest(argv, [(p, host) for p, host in hosts if host.startswith("/") and p != host])


def _unchanged(before: Path, after: Path) -> bool:
    return before.is_file() and filecmp.cmp(before, after, shallow=False)


def _names(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(directory))
