"""What a Python interpreter needs inside an enclave: for manifests of ten lines.

The interpreter is asked about itself (nothing of the caller's environment leaks into the answer);
the rest is looked up without running anything.
"""

from __future__ import annotations

import json
import os
import posixpath
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.errors import ManifestError
from cloister.manifest.libraries import LINKER_CACHE, Libraries
from cloister.manifest.tree import FileTree

_QUESTION = """
import json, sys, sysconfig
print(json.dumps({
    "executable": sys.executable,
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
    "path": sys.path,
    "stdlib": sysconfig.get_path("stdlib"),
    "platstdlib": sysconfig.get_path("platstdlib"),
}))
"""

# Prefixes that hold a whole operating system: mounting them would show far too much.
_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
_SITE_DIRECTORIES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class PythonEnvironment:
    """An interpreter with its standard library, packages and shared libraries.

    Attributes:
        executable: the interpreter; the same path inside as on the host.
        directories: what to mount, each at its own path: directories, and single files where a
            directory would show more than needed.
        trusted_files: ``file:`` URIs for ``sgx.trusted_files``; directories end with ``/``.
    """

    executable: str
    directories: tuple[str, ...]
    trusted_files: tuple[str, ...]


def python_environment(interpreter: str | None = None, *, tree: FileTree) -> PythonEnvironment:
    """Describe the environment of ``interpreter``.

    Packages that only the calling user sees (``pip install --user``) are not part of it.

    Args:
        interpreter: a Python program, or the directory of a virtual environment, relative to the
            current directory or in PATH; None takes the interpreter that runs this.
        tree: listings of directories.

    Raises:
        ManifestError: it cannot be run or is no Python 3.
    """
    facts = ask(interpreter)
    roots = list(_with_links(_roots(facts), tree))
    files = [path for root in roots for path in _members(root, tree)]
    shared = (path for path in files if ".so" in path and ".so" in posixpath.basename(path))
    libraries = Libraries([facts["executable"], *shared])

    known = set(files)
    singles = [facts["executable"], *_configuration(facts)]
    singles += [name for name in libraries.names if name not in known]
    if libraries.needs_cache:
        singles.append(LINKER_CACHE)
    return PythonEnvironment(
        executable=facts["executable"],
        directories=tuple(_mounts(facts, roots, singles)),
        trusted_files=tuple(f"file:{path}" for path in dict.fromkeys((*singles, *roots))),
    )


def _program(interpreter: str | None) -> str:
    if interpreter is None:
        return sys.executable
    if "/" not in interpreter and not Path(interpreter).exists():
        return interpreter  # a name to be looked for in PATH
    path = Path(interpreter).absolute()
    return str(path / "bin" / "python") if path.is_dir() else str(path)


def ask(interpreter: str | None) -> dict[str, Any]:
    """Run an interpreter, isolated from environment variables and the user's own packages.

    Args:
        interpreter: as for :func:`python_environment`.

    Raises:
        ManifestError: it cannot be run or is no Python 3.
    """
    program = _program(interpreter)
    try:
        answer = subprocess.run(
            [program, "-I", "-c", _QUESTION], capture_output=True, check=True, timeout=60, cwd="/"
        )
        facts: dict[str, Any] = json.loads(answer.stdout)
    except FileNotFoundError as error:
        raise ManifestError(
            f"python_environment: {program} does not exist",
            hint="pass the path of a Python program or of a virtual environment",
        ) from error
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ManifestError(
            f"python_environment: {program} does not answer as Python 3 does",
            hint="pass the path of a Python program or of a virtual environment",
        ) from error
    return facts


def _roots(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what to trust as a whole: directories with a slash at the end, and single files.

    A site-packages directory that this environment does not use may lie inside the standard
    library's; then the library is listed by its members without it.
    """
    path = [entry for entry in facts["path"] if Path(entry).exists()]
    stdlib = dict.fromkeys((facts["stdlib"], facts["platstdlib"]))
    for directory in dict.fromkeys((*stdlib, *path)):
        if not Path(directory).is_dir():
            yield directory
        elif any(
            (Path(directory) / site).is_dir() and f"{directory}/{site}" not in path
            for site in _SITE_DIRECTORIES
        ):
            yield from _members_without_sites(directory)
        elif not any(_is_below(directory, other) for other in (*stdlib, *path)):
            yield f"{directory}/"


def _with_links(roots: Iterable[str], tree: FileTree) -> Iterator[str]:
    """Yield the roots, and as roots of their own the directories to which links in them lead.

    A program opens files through the link's name. No directory is followed into itself.
    """
    waiting = list(roots)
    seen: set[str] = set()
    while waiting:
        root = waiting.pop(0)
        yield root
        if root.endswith("/"):
            for link in tree.links(root):
                target = os.path.realpath(link)
                if target not in seen and not _is_below(f"{os.path.realpath(root)}/x", target):
                    seen.add(target)
                    waiting.append(f"{link}/")


def _members_without_sites(directory: str) -> Iterator[str]:
    for entry in sorted(Path(directory).iterdir()):
        if entry.name not in _SITE_DIRECTORIES and os.access(entry, os.R_OK):
            yield f"{entry}/" if entry.is_dir() else str(entry)


def _members(root: str, tree: FileTree) -> list[str]:
    return tree.files(root) if root.endswith("/") else [root]


def _configuration(facts: dict[str, Any]) -> list[str]:
    file = posixpath.join(facts["prefix"], "pyvenv.cfg")
    return [file] if Path(file).is_file() else []


def _mounts(facts: dict[str, Any], roots: Iterable[str], singles: Iterable[str]) -> list[str]:
    """Return the fewest mounts that show everything, without those inside of others."""
    prefixes = [
        prefix
        for prefix in (facts["prefix"], facts["base_prefix"])
        if prefix not in _SYSTEM_PREFIXES
    ]
    wanted = [*prefixes, *(root.rstrip("/") for root in roots)]
    for path in singles:
        is_library = ".so" in posixpath.basename(path) and path != LINKER_CACHE
        wanted.append(posixpath.dirname(path) if is_library else path)
    unique = dict.fromkeys(wanted)
    return sorted(path for path in unique if not any(_is_below(path, other) for other in unique))


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(f"{directory.rstrip('/')}/") and path != directory
