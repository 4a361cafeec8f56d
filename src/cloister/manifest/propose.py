"""From what a program opened to a manifest that grants exactly that.

What it only read becomes trusted, file by file. What it wrote is encrypted; it is open to the host
(``sgx.allowed_files``) only if the caller asks for that, and then the manifest says so. What it
wrote for itself alone goes into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from cloister.errors import ManifestError
from cloister.manifest.parse import ManifestText
from cloister.manifest.uris import FILE, normalise
from cloister.text import without_braces

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (recognised, not used)
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyi", ".pth", ".sh")
_PYTHON_SUFFIXES = (".py", ".pyc")
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_TRUSTED_ARRAY = re.compile(
    r"^[ \t]*(?:sgx[ \t]*\.[ \t]*)?trusted_files[ \t]*=[ \t]*\[", re.MULTILINE
)
_TEMPLATE_CODE = ("{{", "{%", "{#")
_DEEPEST_MOUNT = 3  # path components; deeper directories are shown by the mount above them


@dataclass(frozen=True)
class Observed:
    """What one run of a program did.

    Attributes:
        command: program and arguments; the program by its absolute path.
        directory: where it was started.
        environment: its whole environment.
        read: URI paths of files that it only read.
        written: URI paths of files that it wrote and left behind.
        passing: URI paths of files that it wrote and removed again.
        changed: those of ``written`` that were there before.
    """

    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    read: tuple[str, ...]
    written: tuple[str, ...]
    passing: tuple[str, ...]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """Where the key for outputs comes from; a manifest without any is complete but for that.

    Attributes:
        server: ``HOST:PORT`` of a key server that releases it to the enclave.
        ca_chain: absolute path of the certificates by which the server is known.
        test: a key to be written into the manifest, 32 hexadecimal digits: INSECURE.
    """

    server: str | None = None
    ca_chain: str | None = None
    test: str | None = None


@dataclass
class Proposal:
    """A proposed manifest.

    Attributes:
        text: TOML.
        notes: what its author has to decide.
    """

    text: str
    notes: list[str] = field(default_factory=list)


def propose(observed: Observed, *, allow_outputs: bool = False, keys: Keys = Keys()) -> Proposal:
    """Return a manifest for what was observed.

    Args:
        observed: absolute URI paths.
        allow_outputs: leave what the program writes open to the host, instead of encrypting it.
        keys: where the key for outputs comes from.
    """
    return _Proposer(observed, keys, allow_outputs=allow_outputs).proposal()


class _Proposer:
    def __init__(self, observed: Observed, keys: Keys, *, allow_outputs: bool) -> None:
        if keys.ca_chain is not None:
            read = dict.fromkeys((*observed.read, keys.ca_chain))
            observed = dataclasses.replace(observed, read=tuple(read))
        self._observed = observed
        self._keys = keys
        self._allow_outputs = allow_outputs
        self._notes: list[str] = []
        self._encrypted: list[str] = []
        self._protected: list[str] = []
        self._memory: list[str] = []
        self._sort_writes()
        self._note_plaintext()

    def proposal(self) -> Proposal:
        lines = [*self._head(), *self._mounts(), *self._enclave(), *self._outputs()]
        return Proposal("\n".join(lines) + "\n", self._notes)

    # --- what is written -----------------------------------------------------------------------

    def _sort_writes(self) -> None:
        """Decide for each directory that is written to: memory, encrypted, or file by file."""
        for directory in dict.fromkeys(map(posixpath.dirname, self._all_writes())):
            temporary = self._temporary(directory)
            if temporary is not None:
                if temporary not in self._memory:
                    self._memory.append(temporary)
            elif self._allow_outputs:
                continue
            elif not self._holds_inputs(directory):
                self._encrypted.append(directory)
            else:
                self._mixed(directory)

    def _all_writes(self) -> Iterator[str]:
        yield from self._observed.written
        yield from self._observed.passing

    def _temporary(self, directory: str) -> str | None:
        """Return what to keep in memory for a directory of temporary files, None for others."""
        if _is_below(directory, self._observed.directory) or self._is_asked_for(directory):
            return None
        return next((place for place in _TEMPORARY if _is_below(directory, place)), None)

    def _is_asked_for(self, directory: str) -> bool:
        """Tell whether an argument of the program names a file that it left in ``directory``."""
        return any(
            posixpath.dirname(path) == directory and path in self._observed.command
            for path in self._observed.written
        )

    def _mixed(self, directory: str) -> None:
        """Outputs beside inputs: only the outputs can be encrypted."""
        written = [p for p in self._observed.written if posixpath.dirname(p) == directory]
        passing = [p for p in self._observed.passing if posixpath.dirname(p) == directory]
        self._protected += [*written, *passing]
        if passing:
            self._notes.append(
                f"temporary files are written beside inputs in {directory}; if their names differ"
                " from run to run, let the program write into a directory of its own"
            )

    def _note_plaintext(self) -> None:
        """Say which files the traced run left in the clear where encrypted ones are expected."""
        changed = set(self._observed.changed)
        left = [path for path in self._observed.written if self._is_encrypted(path)]
        old = [path for path in left if path in changed]
        new = [path for path in left if path not in changed]
        if new:
            self._notes.append(
                f"written in the clear by this run, remove before the program runs in its enclave:"
                f" {' '.join(map(shlex.quote, new))}"
            )
        if old:
            self._notes.append(
                "read and written in the clear, encrypt (cloister encrypt) or remove before the"
                f" program runs in its enclave: {' '.join(map(shlex.quote, old))}"
            )

    def _is_encrypted(self, path: str) -> bool:
        return path in self._protected or any(_is_below(path, place) for place in self._encrypted)

    def _holds_inputs(self, directory: str) -> bool:
        prefix = f"{directory.rstrip('/')}/"
        below_start = f"{self._observed.directory}/".startswith(prefix)
        return below_start or any(path.startswith(prefix) for path in self._observed.read)

    # --- the text ------------------------------------------------------------------------------

    def _head(self) -> Iterator[str]:
        program, *_ = self._observed.command
        yield "# Proposed by `cloister trace` from one run. What another run opens besides these"
        yield "# files is denied and reported; trace that run too: --manifest merges."
        yield _line("libos.entrypoint", program)
        yield _line("loader.argv", list(self._observed.command))
        runs_python = any(path.endswith(_PYTHON_SUFFIXES) for path in self._observed.read)
        for name, value in self._observed.environment.items():
            if name == _NO_BYTECODE and not runs_python:
                continue
            yield _line(f"loader.env.{_key(name)}", value)
        yield _line("fs.start_dir", self._observed.directory)
        yield ""

    def _mounts(self) -> Iterator[str]:
        start = self._observed.directory
        mounts: dict[str, dict[str, str]] = {start: {"path": start, "uri": f"{FILE}."}}
        for path in (*self._observed.read, *self._protected, *self._allowed()):
            if not _is_below(path, start):
                place = _mount_point(path)
                mounts.setdefault(place, {"path": place, "uri": f"{FILE}{place}"})
        kept = [m for place, m in mounts.items() if not self._shown_elsewhere(place, mounts)]
        kept += [
            {"path": place, "uri": self._uri(place), "type": "encrypted"}
            for place in self._encrypted
        ]
        kept += [{"path": place, "type": "tmpfs"} for place in self._memory]
        yield "fs.mounts = ["
        for mount in sorted(kept, key=lambda mount: len(mount["path"])):
            yield f"  {_inline(mount)},"
        yield "]"
        yield ""

    def _shown_elsewhere(self, place: str, mounts: Iterable[str]) -> bool:
        start = self._observed.directory
        return place != start and any(
            _is_below(place, other) for other in mounts if other not in (place, start)
        )

    def _enclave(self) -> Iterator[str]:
        yield _line("sgx.enclave_size", "4G")
        yield _line("sgx.max_threads", 64)
        yield _line("sys.stack.size", "8M")
        inputs = [path for path in self._observed.read if self._is_input(path)]
        code = [path for path in self._observed.read if path not in set(inputs)]
        yield "sgx.trusted_files = ["
        yield from (f"  {_value(self._uri(path))}," for path in sorted(code))
        if inputs:
            yield "  # Inputs: checked, but readable by the host. Encrypt those that are secret."
            yield from (f"  {_value(self._uri(path))}," for path in sorted(inputs))
        yield "]"

    def _outputs(self) -> Iterator[str]:
        if self._encrypted or self._protected:
            yield ""
            yield from self._key()
        if self._protected:
            yield _line("sgx.protected_files", [self._uri(path) for path in self._protected])
        allowed = self._allowed()
        if allowed:
            yield ""
            yield "# INSECURE: the host reads and changes these files."
            yield _line("sgx.allowed_files", [self._uri(path) for path in allowed])
            self._notes.append("INSECURE: what the program writes is open to the host")

    def _key(self) -> Iterator[str]:
        """Yield the lines by which the enclave gets the key for its outputs."""
        if self._keys.test is not None:
            self._notes.append("INSECURE: the key for outputs is in the manifest; for tests only")
            yield "# INSECURE, for tests only: everybody who reads this can read the outputs."
            yield _line("fs.insecure__keys.default", self._keys.test)
        elif self._keys.server is not None:
            yield "# Outputs are encrypted under the key that a key server releases."
            yield _line("sgx.remote_attestation", "dcap")
            yield _line("loader.env.SECRET_PROVISION_CONSTRUCTOR", "true")
            yield _line("loader.env.SECRET_PROVISION_SET_KEY", "default")
            yield _line("loader.env.SECRET_PROVISION_SERVERS", self._keys.server)
            yield _line("loader.env.SECRET_PROVISION_CA_CHAIN_PATH", self._keys.ca_chain)
        else:
            self._notes.append(
                "outputs are encrypted, and nothing says yet where the key comes from:"
                " trace with --key-server HOST:PORT --ca-chain FILE, or for a test --test-key"
            )
            yield "# Outputs are encrypted under the key named default: have a key server release"
            yield "# it (loader.env.SECRET_PROVISION_SERVERS), or set fs.insecure__keys.default"
            yield "# for a test."

    def _allowed(self) -> list[str]:
        if not self._allow_outputs:
            return []
        return [
            path
            for path in self._observed.written
            if self._temporary(posixpath.dirname(path)) is None
        ]

    def _is_input(self, path: str) -> bool:
        is_code = path.endswith(_CODE_SUFFIXES) or ".so." in posixpath.basename(path)
        in_arguments = posixpath.basename(path) in map(posixpath.basename, self._observed.command)
        return (
            not is_code
            and (_is_below(path, self._observed.directory) or in_arguments)
            and (path != self._observed.command[0])
        )

    def _uri(self, path: str) -> str:
        """Name files below the starting directory relative to it: the manifest lies there."""
        start = self._observed.directory
        return FILE + (posixpath.relpath(path, start) if _is_below(path, start) else path)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _mount_point(path: str) -> str:
    """Return what to mount for a file: a directory, but none that shows half of the system."""
    parts = posixpath.dirname(path).split("/")[1:]
    return path if len(parts) < 2 else "/" + "/".join(parts[:_DEEPEST_MOUNT])


def _line(key: str, value: Any) -> str:
    return f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    text = tomli_w.dumps({"k": value}).removeprefix("k = ").rstrip("\n")
    return without_braces(" ".join(line.strip() for line in text.splitlines()))


def _inline(table: Mapping[str, str]) -> str:
    return "{ " + ", ".join(_line(key, value) for key, value in table.items()) + " }"


def _key(name: str) -> str:
    return without_braces(tomli_w.dumps({name: 1}).partition(" = ")[0])


# --- merging -------------------------------------------------------------------------------------


def merge(
    observed: Observed, text: ManifestText, source: str, read: Callable[[str], ManifestText]
) -> Proposal:
    """Add what was observed, and what a manifest does not yet grant, to that manifest.

    Args:
        observed: URI paths as the manifest's own mounts name them.
        text: the manifest with which the program ran.
        source: what it was read from: the same text, or a template.
        read: validates a changed ``source``, rendering it first if it is a template.
    """
    sgx = text.manifest.sgx
    trusted = {file.path for file in sgx.trusted_files if not file.uri.endswith("/")}
    directories = [file.path for file in sgx.trusted_files if file.uri.endswith("/")]
    directories += [normalise(uri.partition(":")[2]) for uri in sgx.allowed_files]
    directories += [normalise(uri.removeprefix(FILE)) for uri in sgx.protected_files]

    def granted(path: str) -> bool:
        return path in trusted or any(
            _is_below(path, directory) or directory == "." for directory in directories
        )

    new = [f"{FILE}{path}" for path in observed.read if not granted(path)]
    proposal = _with_trusted(text, source, new, read)
    proposal.notes += [
        f"{path} is written, but the manifest grants no writing there;"
        " mount an encrypted or tmpfs directory"
        for path in (*observed.written, *observed.passing)
        if not granted(path)
    ]
    return proposal


def _with_trusted(
    text: ManifestText, source: str, new: list[str], read: Callable[[str], ManifestText]
) -> Proposal:
    """Return ``source`` with ``new`` among its trusted files, and otherwise as its author wrote it.

    A text that cannot be changed so, and means what it should, is written anew; where that would
    be, or could become, a template, it is left to its author. No name can be template code there:
    ``read`` runs what is.
    """
    if not new:
        return Proposal(source)
    notes = [f"trusted now: {uri}" for uri in new]
    wanted = _document_with(text.document, new)
    lines = "".join(f"  {_value(uri)},\n" for uri in new)
    candidates = (
        _TRUSTED_ARRAY.sub(lambda found: f"{found.group()}\n{lines}", source, count=1),
        f"sgx.trusted_files = [\n{lines}]\n{source}",
    )
    for candidate in candidates:
        if candidate == source:
            continue
        with contextlib.suppress(ManifestError):
            if _in_order(read(candidate).document) == _in_order(wanted):
                return Proposal(candidate, notes)
    anew = tomli_w.dumps(wanted)
    if source == text.text and not any(mark in anew for mark in _TEMPLATE_CODE):
        return Proposal(anew, notes)
    return Proposal(source, [f"add to sgx.trusted_files yourself: {uri}" for uri in new])


def _document_with(document: Mapping[str, Any], new: list[str]) -> dict[str, Any]:
    sgx = dict(document.get("sgx", {}))
    sgx["trusted_files"] = [*sgx.get("trusted_files", []), *new]
    return {**document, "sgx": sgx}


def _in_order(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its trusted files sorted: their order means nothing."""
    sgx = dict(document.get("sgx", {}))
    sgx["trusted_files"] = sorted(sgx.get("trusted_files", []), key=repr)
    return {**document, "sgx": sgx}
