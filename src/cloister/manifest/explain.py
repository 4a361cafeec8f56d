"""What a manifest means to a person: what the enclave can do, and what it leaves to the host."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cloister.manifest.effects import without_effect
from cloister.manifest.locate import KeyPath
from cloister.manifest.model import Manifest, TrustedFile
from cloister.manifest.parse import ManifestText, dotted
from cloister.manifest.uris import FILE, normalise
from cloister.manifest.visibility import inside_paths, is_only_encrypted

_KERNEL_DIRECTORIES = ("/proc", "/sys", "/dev")
_DEBUG_BIT = 2
_FEW = 3


@dataclass(frozen=True)
class Remark:
    """One line about one key.

    Attributes:
        key: as the author wrote it.
        line: in the author's file; None if it is a default, or cannot be told.
        text: what it means.
    """

    key: str
    line: int | None
    text: str


@dataclass(frozen=True)
class Explanation:
    """Everything that is said of a manifest, for people and as JSON.

    Attributes:
        executes: program, arguments and where it starts.
        reads: what the program can read, and why the content can be relied on.
        writes: where it can write, and who can read or change that.
        insecure: lines by which the host gains something, and what.
        without_effect: lines that change nothing on this platform, and why.
    """

    executes: list[str]
    reads: list[str]
    writes: list[str]
    insecure: list[Remark]
    without_effect: list[Remark]


def explain(text: ManifestText) -> Explanation:
    """Explain a manifest."""
    manifest = text.manifest

    def remark(path: KeyPath, what: str) -> Remark:
        return Remark(dotted(text.origin(path)), text.line_of(path), what)

    return Explanation(
        executes=list(_executes(manifest)),
        reads=list(_reads(manifest)),
        writes=list(_writes(manifest)),
        insecure=[remark(path, what) for path, what in _insecure(manifest)],
        without_effect=[
            *(remark(path, why) for path, why in text.dropped.items()),
            *(remark(path, why) for path, why in without_effect(text.document)),
        ],
    )


def _executes(manifest: Manifest) -> Iterator[str]:
    loader = manifest.loader
    yield f"{manifest.libos.entrypoint}, started in {manifest.fs.start_dir}"
    if loader.insecure__use_cmdline_argv:
        yield "with the arguments that the host gives"
    elif loader.argv_src_file is not None:
        yield f"with the arguments in {loader.argv_src_file}"
    else:
        arguments = loader.argv or [manifest.libos.entrypoint]
        yield f"with the arguments {' '.join(map(repr, arguments))}"
    names = [name for name, value in loader.env.items() if value.value is not None]
    yield f"with the environment variables {', '.join(names) or '(none)'}"
    yield "and any file below that it can read and that has an x permission"


def _reads(manifest: Manifest) -> Iterator[str]:
    if manifest.cloister.trusted_index is not None:
        yield "the files of the signed index, whose content is checked"
    checked: list[TrustedFile] = []
    encrypted: list[TrustedFile] = []
    for file in manifest.sgx.trusted_files:
        (encrypted if is_only_encrypted(manifest, file.path) else checked).append(file)
    yield from (f"{what}, whose content is checked" for what in _named(manifest, checked))
    yield from (
        f"{what}, encrypted: the key authenticates, the hash of sgx.trusted_files is not compared"
        for what in _named(manifest, encrypted)
    )
    for key in manifest.cloister.keys:
        yield f"what the key {key.name!r} opens, which {key.servers} may release (CA: {key.ca})"
    yield from (f"{place}" for place in _writes(manifest))


def _named(manifest: Manifest, listed: Sequence[TrustedFile]) -> list[str]:
    """Name the trusted files; several of one directory are only counted."""
    directories: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    for file in listed:
        place = _seen(manifest, file.path)
        kind = directories if file.uri.endswith("/") else files
        kind.setdefault(posixpath.dirname(place), []).append(place)
    found = []
    for parent, places in directories.items():
        if len(places) <= _FEW:
            found += [f"all files below {place}" for place in places]
        else:
            names = ", ".join(posixpath.basename(place) for place in places[:_FEW])
            found.append(f"all files below {len(places)} directories of {parent} ({names}, ..)")
    return found + [
        places[0] if len(places) == 1 else f"{len(places)} files in {directory}"
        for directory, places in files.items()
    ]


def _writes(manifest: Manifest) -> Iterator[str]:
    for mount in manifest.fs.mounts:
        if mount.type == "tmpfs":
            yield f"{mount.path}: memory, gone when the enclave ends"
        elif mount.type == "encrypted":
            key = mount.key_name or "default"
            yield f'{mount.path}: encrypted on the host in {mount.uri} under the key "{key}"'
        elif mount.type == "untrusted_shm" or (mount.uri or "").startswith("dev:"):
            yield f"{mount.path}: the host's {mount.uri}, open to the host"
    root = manifest.fs.root
    if root is not None and root.type == "encrypted":
        yield f'/: encrypted on the host in {root.uri} under the key "{root.key_name or "default"}"'
    for uri in manifest.sgx.protected_files:
        path = _seen(manifest, normalise(uri.removeprefix(FILE)))
        yield f'{path}: encrypted on the host under the key "default"'
    for uri in manifest.sgx.allowed_files:
        yield f"{_seen(manifest, normalise(uri.partition(':')[2]))}: open to the host, unchecked"
    if manifest.sgx.file_check_policy == "allow_all_but_log":
        yield "every other mounted file: open to the host, unchecked"


def _seen(manifest: Manifest, path: str) -> str:
    """Say where the program finds a host file; a file outside all mounts cannot be reached."""
    return " and ".join(inside_paths(manifest, path)) or f"{path} (not mounted: out of reach)"


# --- what a host gains ---------------------------------------------------------------------------

_FLAGS: dict[KeyPath, str] = {
    ("loader", "insecure__use_cmdline_argv"): (
        "the host chooses the program's arguments, for an interpreter even the program"
    ),
    ("loader", "insecure__use_host_env"): (
        "the host sets any environment variable, LD_PRELOAD and PYTHONPATH among them"
    ),
    ("sgx", "debug"): "the host reads and changes the enclave's memory with a debugger",
    ("sgx", "insecure__allow_memfaults_without_exinfo"): (
        "the host may lie about the address of a page fault"
    ),
}


def _insecure(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    for path, what in _FLAGS.items():
        if _value(manifest, path):
            yield path, what
    for name, variable in manifest.loader.env.items():
        if variable.passthrough:
            yield ("loader", "env", name), "the host chooses the value of this variable"
    for name in manifest.fs.insecure__keys:
        yield (
            ("fs", "insecure__keys", name),
            "the key is in the manifest, where everybody can read it; use it for tests only",
        )
    yield from _insecure_files(manifest)
    yield from _insecure_attestation(manifest)


def _insecure_files(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    if manifest.sgx.file_check_policy != "strict":
        yield (
            ("sgx", "file_check_policy"),
            "the host changes every mounted file that is not trusted, programs among them",
        )
    for number, uri in enumerate(manifest.sgx.allowed_files):
        yield (
            ("sgx", "allowed_files", number),
            f"the host reads and changes {uri.partition(':')[2]} at any time",
        )
    for number, mount in enumerate(manifest.fs.mounts):
        host = (mount.uri or "").partition(":")[2]
        at: KeyPath = ("fs", "mounts", number)
        if mount.type == "untrusted_shm":
            yield at, "the host reads and changes what is shared there"
        elif mount.type == "chroot" and _is_below(host, _KERNEL_DIRECTORIES):
            yield at, f"the host's {host} tells the program what the host likes"


def _insecure_attestation(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    if manifest.sgx.seal_key.flags_mask & _DEBUG_BIT == 0:
        yield (
            ("sgx", "seal_key", "flags_mask"),
            "a debug enclave of the same measurement gets the same sealing keys",
        )


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    normal = normalise(path)
    return any(
        normal == directory or normal.startswith(f"{directory}/") for directory in directories
    )


def _value(manifest: Manifest, path: KeyPath) -> object:
    value: object = manifest
    for part in path:
        value = getattr(value, str(part))
    return value


Show = Callable[[str], None]


def show(explanation: Explanation, write: Show) -> None:
    """Write an explanation for people, line by line."""
    for title, lines in (
        ("The enclave executes", explanation.executes),
        ("It can read", explanation.reads),
        ("It can write", explanation.writes),
    ):
        write(f"{title}:")
        for line in lines or ["nothing"]:
            write(f"  {line}")
    _show_remarks("Insecure, by what the host can do:", explanation.insecure, write)
    _show_remarks("Without effect here:", explanation.without_effect, write)


def _show_remarks(title: str, remarks: list[Remark], write: Show) -> None:
    write(title)
    for remark in remarks:
        where = "" if remark.line is None else f"line {remark.line}: "
        write(f"  {where}{remark.key}: {remark.text}")
    if not remarks:
        write("  nothing")
