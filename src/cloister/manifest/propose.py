"""From what a program opened to a manifest that grants exactly that.

What it only read becomes trusted, file by file. What it wrote is encrypted; it is open to the host
(``sgx.allowed_files``) only if the caller asks for that, and then the manifest says so. What it
wrote for itself alone goes into memory.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from cloister.manifest.parse import ManifestText
from cloister.manifest.uris import FILE, normalise

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (recognised, not used)
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyi", ".pth", ".sh")
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
    """

    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    read: tuple[str, ...]
    written: tuple[str, ...]
    passing: tuple[str, ...]


@dataclass
class Proposal:
    """A proposed manifest.

    Attributes:
        text: TOML.
        notes: what its author has to decide.
    """

    text: str
    notes: list[str] = field(default_factory=list)


def propose(observed: Observed, *, allow_outputs: bool = False) -> Proposal:
    """Return a manifest for what was observed.

    Args:
        observed: absolute URI paths.
        allow_outputs: leave what the program writes open to the host, instead of encrypting it.
    """
    return _Proposer(observed, allow_outputs=allow_outputs).proposal()


class _Proposer:
    def __init__(self, observed: Observed, *, allow_outputs: bool) -> None:
        self._observed = observed
        self._allow_outputs = allow_outputs
        self._notes: list[str] = []
        self._encrypted: list[str] = []
        self._protected: list[str] = []
        self._memory: list[str] = []
        self._sort_writes()

    def proposal(self) -> Proposal:
        lines = [*self._head(), *self._mounts(), *self._enclave(), *self._outputs()]
        return Proposal("\n".join(lines) + "\n", self._notes)

    # --- what is written -----------------------------------------------------------------------

    def _sort_writes(self) -> None:
        """Decide for each directory that is written to: memory, encrypted, or file by file."""
        for directory in dict.fromkeys(map(posixpath.dirname, self._all_writes())):
            temporary = self._temporary(directory)
            if temporary is not None:
                self._add_memory(temporary)
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
        for temporary in _TEMPORARY:
            if _is_below(directory, temporary):
                return temporary if not self._holds_inputs(temporary) else directory
        return None

    def _is_asked_for(self, directory: str) -> bool:
        """Tell whether an argument of the program names a file that it left in ``directory``."""
        return any(
            posixpath.dirname(path) == directory and path in self._observed.command
            for path in self._observed.written
        )

    def _add_memory(self, directory: str) -> None:
        if self._holds_inputs(directory):
            self._notes.append(
                f"{directory} holds inputs and temporary files; keep the inputs elsewhere"
            )
        elif directory not in self._memory:
            self._memory.append(directory)

    def _mixed(self, directory: str) -> None:
        """Outputs beside inputs: only the outputs can be encrypted."""
        self._protected += [p for p in self._observed.written if posixpath.dirname(p) == directory]
        if any(posixpath.dirname(path) == directory for path in self._observed.passing):
            self._notes.append(
                f"temporary files are written beside inputs in {directory};"
                " let the program write into a directory of its own"
            )

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
        for name, value in self._observed.environment.items():
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
            yield "# Outputs are encrypted under the key named default: have a key server release"
            yield "# it (loader.env.SECRET_PROVISION_SERVERS), or set fs.insecure__keys.default"
            yield "# for a test."
        if self._protected:
            yield _line("sgx.protected_files", [self._uri(path) for path in self._protected])
        allowed = self._allowed()
        if allowed:
            yield ""
            yield "# INSECURE: the host reads and changes these files."
            yield _line("sgx.allowed_files", [self._uri(path) for path in allowed])
            self._notes.append("INSECURE: what the program writes is open to the host")

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
    return " ".join(line.strip() for line in text.splitlines())


def _inline(table: Mapping[str, str]) -> str:
    return "{ " + ", ".join(_line(key, value) for key, value in table.items()) + " }"


def _key(name: str) -> str:
    return tomli_w.dumps({name: 1}).partition(" = ")[0]


# --- merging -------------------------------------------------------------------------------------


def merge(observed: Observed, text: ManifestText) -> Proposal:
    """Add what was observed, and what a manifest does not yet grant, to that manifest.

    Args:
        observed: URI paths as the manifest's own mounts name them.
        text: the manifest with which the program ran.
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
    document = dict(text.document)
    document["sgx"] = dict(document.get("sgx", {}))
    if new:
        document["sgx"]["trusted_files"] = [*document["sgx"].get("trusted_files", []), *new]
    proposal = Proposal(tomli_w.dumps(document))
    proposal.notes += [f"trusted now: {uri}" for uri in new]
    proposal.notes += [
        f"{path} is written, but the manifest grants no writing there;"
        " mount an encrypted or tmpfs directory"
        for path in (*observed.written, *observed.passing)
        if not granted(path)
    ]
    return proposal
