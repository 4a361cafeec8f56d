"""One run of a program under Gramine: find its files, say what protects it, start it, translate."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from cloister.errors import InputError, PlatformError
from cloister.manifest.parse import ManifestText
from cloister.manifest.prepare import Settings, with_hashes
from cloister.manifest.signed import beside
from cloister.manifest.tree import FileTree
from cloister.platforms.gramine.build import host_of, translated
from cloister.platforms.gramine.bytecode import notes_on
from cloister.platforms.gramine.installation import Installation
from cloister.platforms.gramine.messages import Translator
from cloister.platforms.gramine.presence import APP_SUFFIX, DEVICE, signed_files
from cloister.platforms.gramine.translation import for_direct
from cloister.runtime import linux
from cloister.runtime.environment import require_that_they_count
from cloister.sgx.report import Attribute
from cloister.sgx.sigstruct import Sigstruct
from cloister.signals import forwarded_signals, prompt_signals

SGX_PROTECTS = (
    "SGX enclave: its memory is encrypted against everybody on this machine, root included"
)
DEBUG_PROTECTS = (
    "NOT PROTECTED: sgx.debug = true. Anybody on this machine can read this enclave's memory; no"
    " key server releases a key to it"
)
DIRECT_PROTECTS = (
    "NOT PROTECTED: gramine-direct has no enclave and no attestation. Whoever administers this"
    " machine can read the program's memory, its keys and all that it decrypts; no key server"
    " is asked, and none would release a key"
)
_UNEXPLAINED = (
    "the program failed. Had Gramine denied it a file, or found one damaged, it would have said so"
    ' only at loader.log_level = "warning", which is measured: build with it to see'
)
_LOG_LEVEL = re.compile(r"^log_level *= *\"(\w+)\"", re.MULTILINE)
_MEMORY = Path("/dev/shm")  # noqa: S108  (only a private directory is made there)
Note = Callable[[str], None]
Attach = Callable[[subprocess.Popen[bytes]], None]


def run_sgx(
    app: Path, arguments: Sequence[str], note: Note, *, require_protection: bool = False
) -> int:
    """Run an application in an SGX enclave, as ``gramine-sgx`` does; return its exit code.

    Args:
        app: path without suffix.
        arguments: for the program.
        note: tells what protects the program.
        require_protection: refuse a debug enclave.

    Raises:
        InputError: it was not built for Gramine.
        PlatformError: no SGX, or no Gramine; or it would be a debug enclave.
    """
    if not DEVICE.exists():
        raise PlatformError(
            f"{DEVICE}: is not there, so this machine starts no SGX enclaves",
            hint="cloister doctor says what is missing; --platform gramine-direct runs the program"
            " without enclave and without protection",
        )
    installation = Installation.here()
    manifest, signature = signed_files(app)
    signed = Sigstruct.unpack(signature.read_bytes())
    debug = Attribute.DEBUG in Attribute(signed.flags)
    if debug and require_protection:
        raise PlatformError(
            f"{signature}: sgx.debug = true, so that no hardware would protect this enclave",
            hint="build without sgx.debug",
        )
    protects = DEBUG_PROTECTS if debug else SGX_PROTECTS
    note(f"enclave {signed.mr_enclave.hex()} on {installation.title}, {protects}")
    program = installation.require("gramine-sgx")
    command = [program, beside(app, APP_SUFFIX).name, *arguments]
    level = _LOG_LEVEL.search(manifest.read_text(encoding="utf-8"))
    with _handing_on_signals() as attach:
        code, is_explained = _start(command, app.resolve().parent, attach)
    if code and not is_explained and (level is None or level[1] in ("none", "error")):
        note(_UNEXPLAINED)
    return code


def run_direct(
    app: Path,
    arguments: Sequence[str],
    note: Note,
    *,
    keys: Mapping[str, bytes],
    log_level: str | None,
) -> int:
    """Run ``APP.manifest`` with ``gramine-direct``, without protection; return its exit code.

    The manifest that Gramine gets holds the keys, so it lies in memory where only this user reads
    it, and is gone when the program ends.

    Args:
        app: path without suffix.
        arguments: for the program.
        note: tells what protects the program, and what Gramine does otherwise.
        keys: wrap keys (16 bytes) by name.
        log_level: in place of ``loader.log_level``.

    Raises:
        InputError: it was not built, or takes no such arguments.
        PlatformError: no Gramine.
        ManifestError: Gramine cannot run it.
    """
    installation = Installation.here()
    path, base = beside(app, ".manifest"), app.resolve().parent
    try:
        text = ManifestText(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: does not exist; APP is the name that stands before .manifest",
            hint=f"cloister build {app.name}.manifest.template",
        ) from error
    require_that_they_count(text.manifest, arguments)
    note(f"{installation.title}, {DIRECT_PROTECTS}")
    runtime = installation.runtime()
    converted = for_direct(text, runtime, host_of(base), keys)
    if log_level is not None:
        converted.document["loader"]["log_level"] = log_level
    now = datetime.datetime.now(datetime.timezone.utc)
    settings = Settings(libpal=b"", now=now, entrypoint_is_uri=not runtime.entrypoint_has_hash)
    data, notes = with_hashes(translated(converted), base, settings, FileTree())
    for line in (*converted.notes, *notes, *notes_on(text.manifest, base)):
        note(line)
    program = installation.require("gramine-direct")
    where = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
    if where is None and converted.document["fs"].get("insecure__keys"):
        raise PlatformError(
            f"{_MEMORY}: cannot be written, and the manifest with the keys must not reach a disk",
            hint=f"mount a tmpfs at {_MEMORY}, or let this user write there",
        )
    with (
        _handing_on_signals() as attach,  # first: what holds keys is removed also then
        tempfile.TemporaryDirectory(prefix="cloister-", dir=where) as directory,
    ):
        gramine_app = Path(directory) / app.name
        manifest = beside(gramine_app, ".manifest")
        manifest.touch(mode=0o600)
        manifest.write_bytes(data)
        return _start([program, str(gramine_app), *arguments], base, attach)[0]


@contextlib.contextmanager
def _handing_on_signals() -> Iterator[Attach]:
    """From here on no signal ends this process; yields what names the process that gets them."""
    running: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def send(number: int) -> None:
        if running:
            running[0].send_signal(number)
        else:
            early.append(number)

    def attach(process: subprocess.Popen[bytes]) -> None:
        running.append(process)
        for number in early:
            process.send_signal(number)

    with forwarded_signals(send):
        yield attach


def _start(command: Sequence[str], base: Path, attach: Attach) -> tuple[int, bool]:
    """Start Gramine where relative URIs start, and translate what it says.

    Returns:
        The exit code, and whether anything was translated.
    """
    translator = Translator(_to_standard_error)
    try:
        process = subprocess.Popen(
            command,
            cwd=base,
            stderr=subprocess.PIPE,
            # There is no other thread yet.
            preexec_fn=lambda: linux.die_with_parent(signal.SIGKILL),  # noqa: PLW1509
        )
    except OSError as error:
        raise PlatformError(f"{command[0]} does not start: {error.strerror}") from error
    with process, prompt_signals():
        attach(process)
        stderr = cast(IO[bytes], process.stderr).fileno()
        while data := os.read(stderr, 65536):
            translator.feed(data)
        translator.finish()
        code = process.wait()
    if translator.failed_to_start and code != 0:
        code = 1
    return 128 - code if code < 0 else code, translator.has_told


def _to_standard_error(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
