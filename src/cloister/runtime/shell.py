"""A shell in place of the program, in direct mode: to look around in the tree of a manifest.

A tree that has a shell of its own is shown untouched. Into any other one the host's shell and a few
of its tools are mounted in a directory apart, with the libraries that they need.
"""

from __future__ import annotations

import dataclasses
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister.errors import InputError
from cloister.manifest.libraries import Libraries, read_dynamic
from cloister.manifest.model import EnvValue, Mount
from cloister.manifest.uris import file_path
from cloister.runtime.policy import is_below
from cloister.runtime.program import Program

BROUGHT = "/.cloister-shell"
"""Where the host's shell and tools are, in a tree that has none."""

_SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh")
_TOOLS = ("cat", "df", "du", "env", "find", "grep", "head", "id", "ls", "od", "stat", "tail", "wc")
_FROM_THE_TERMINAL = ("TERM", "COLORTERM", "LANG", "NO_COLOR")


def with_shell(program: Program, arguments: Sequence[str]) -> Program:
    """Return the same run with a shell instead of the program.

    Args:
        program: a run in direct mode.
        arguments: of the shell; without any it reads its standard input.

    Raises:
        InputError: it is an enclave's run, or neither tree nor host has a shell.
    """
    if program.trusted is not None:
        raise InputError(
            "a shell cannot be started in an enclave: what runs there is measured",
            hint="cloister run --mode direct --shell APP shows the same tree",
        )
    environment = {
        name: EnvValue(value=value)
        for name, value in program.host_environment.items()
        if name in _FROM_THE_TERMINAL
    }
    shell = _own_shell(program)
    mounts: list[Mount] = []
    if shell is None:
        shell, mounts = _bring(program)
        environment |= {
            "PATH": EnvValue(value=f"{BROUGHT}/bin"),
            "LD_LIBRARY_PATH": EnvValue(value=f"{BROUGHT}/lib"),
        }
    manifest = program.manifest
    loader = manifest.loader.model_copy(
        update={
            "argv": [shell, *arguments],
            "argv_src_file": None,
            "insecure__use_cmdline_argv": False,
            "env": environment | dict(manifest.loader.env),
        }
    )
    changed = manifest.model_copy(
        update={
            "loader": loader,
            "libos": manifest.libos.model_copy(update={"entrypoint": shell}),
            "fs": manifest.fs.model_copy(update={"mounts": [*manifest.fs.mounts, *mounts]}),
        }
    )
    return dataclasses.replace(program, manifest=changed, arguments=())


def _own_shell(program: Program) -> str | None:
    """Return the shell of the tree, if it has one that can run there."""
    for shell in _SHELLS:
        host = _on_host(program, shell)
        if host is None or not host.is_file():
            continue
        interpreter = _interpreter(host)
        if interpreter is None or _is_there(program, interpreter):
            return shell
    return None


def _interpreter(file: Path) -> str | None:
    """Return the ELF interpreter that a program names."""
    read = read_dynamic(str(file))
    return None if read is None else read[0]


def _is_there(program: Program, path: str) -> bool:
    host = _on_host(program, path)
    return host is not None and host.exists()


def _on_host(program: Program, path: str) -> Path | None:
    """Return where the host keeps what the tree shows at ``path``; None if it is not the host's."""
    fs = program.manifest.fs
    places: Mapping[str, tuple[str, str | None]] = {
        "/": ("chroot", "file:.") if fs.root is None else (fs.root.type, fs.root.uri),
        **{mount.path: (mount.type, mount.uri) for mount in fs.mounts},
    }
    mounted = max((place for place in places if is_below(path, place)), key=len)
    kind, uri = places[mounted]
    if kind != "chroot" or uri is None:
        return None
    return program.base / file_path(uri) / posixpath.relpath(path, mounted)


def _bring(program: Program) -> tuple[str, list[Mount]]:
    """Return the host's shell by its name in the tree, and the mounts that bring it there."""
    shell = next((shell for shell in _SHELLS if Path(shell).is_file()), None)
    if shell is None:
        raise InputError("neither the manifest's tree nor this machine has a shell")
    files = {f"{BROUGHT}/bin/{Path(shell).name}": shell}
    for tool in _TOOLS:
        found = shutil.which(tool)
        if found is not None:
            files[f"{BROUGHT}/bin/{tool}"] = found
    for library in Libraries([str(Path(file).resolve()) for file in files.values()]).names:
        files.setdefault(f"{BROUGHT}/lib/{posixpath.basename(library)}", library)
    interpreter = _interpreter(Path(shell))
    if interpreter is not None and not _is_there(program, interpreter):
        files[interpreter] = interpreter
    mounts = [Mount(path=inside, uri=f"file:{host}") for inside, host in files.items()]
    return f"{BROUGHT}/bin/{Path(shell).name}", mounts
