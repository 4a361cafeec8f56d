"""Makes a project of a script: run it once, see what it needs, write everything down."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.encrypted.keys import generate
from cloister.errors import CloisterError, InputError
from cloister.files import write_atomically
from cloister.manifest.python_environment import python_environment
from cloister.manifest.tree import FileTree
from cloister.project.kinds import Kind
from cloister.project.scaffold import Project, render
from cloister.project.sorting import Sorted, sort
from cloister.provision.certificates import make_server_certificates
from cloister.runtime.journal import Journal
from cloister.runtime.watch import native_program, watch

_CERTIFICATE_LIFETIME = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Source:
    """The script of a project.

    Attributes:
        script: its path.
        arguments: for it.
        kind: what it is.
        interpreter: the Python that has its packages; None for the one that runs this.
    """

    script: Path
    arguments: Sequence[str]
    kind: Kind
    interpreter: str | None


def inspect(source: Source, journal: Journal) -> Sorted:
    """Run the script once, without an enclave, and return what it needs and makes.

    A web application is only imported: it would never end.

    Raises:
        CloisterError: it failed.
    """
    home = source.script.resolve().parent
    python = python_environment(source.interpreter, tree=FileTree())
    # A name that begins with a dash is no option of Python.
    script = f"./{source.script.name}" if source.script.name.startswith("-") else source.script.name
    words: tuple[str, ...] = (python.executable, script, *source.arguments)
    if source.kind.serves:
        words = (python.executable, "-c", f"import {source.script.stem}")
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **source.kind.environment}
    program = native_program(words, home, environment, os.getuid(), os.getgid())
    code, observed = watch(program, journal)
    if code != 0:
        raise CloisterError(
            f"{source.script}: ended with code {code}, so what it needs is not known",
            hint="it must run natively first: start it in its directory, with the same Python",
        )
    trusted = [uri.removeprefix("file:") for uri in python.trusted_files]
    return sort(
        observed,
        script=source.script.name,
        home=str(home),
        python=(*python.directories, *trusted, sys.prefix),
    )


def names_its_directory(source: Source, files: Sorted) -> list[str]:
    """Return what of a script has its directory's absolute path in it, which no enclave has."""
    home = source.script.resolve().parent
    pattern = re.compile(re.escape(str(home)) + r"(?![\w.-])")
    texts = {name: (home / name).read_text("utf-8", "replace") for name in files.code}
    texts |= {f"the argument {word}": word for word in source.arguments}
    return [name for name, text in texts.items() if pattern.search(text)]


def application(script: Path) -> str:
    """Return a name that shells and make take as one plain word, after that of a script."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", script.stem).lstrip("-.") or "app"


def create(source: Source, files: Sorted, directory: Path) -> Project:
    """Write the project into a new directory.

    Raises:
        InputError: the directory is not empty.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: exists and is not empty; expected a new directory")
    project = Project(
        app=application(source.script),
        script=source.script.name,
        arguments=source.arguments,
        kind=source.kind,
        files=files,
        interpreter=source.interpreter,
    )
    home = source.script.resolve().parent
    directory.mkdir(parents=True, exist_ok=True)
    _copy(home, files.code, directory / "app")
    (directory / "plaintext").mkdir(mode=0o700)
    _copy(home, [name for name in files.data if name not in files.code], directory / "plaintext")
    for name in files.results:  # a directory that was there when the script wrote into it
        (directory / "plaintext" / name).parent.mkdir(parents=True, exist_ok=True)
    for name in _empty_directories(home, (*files.code, *files.data, *files.results)):
        (directory / "plaintext" / name).mkdir(parents=True, exist_ok=True)
    for name, text in render(project).items():
        write_atomically(directory / name, text.encode())
    write_atomically(directory / "wrap-key", generate(), mode=0o600, replace=False)
    _make_certificates(directory / "certs")
    return project


def _empty_directories(home: Path, names: Sequence[str]) -> list[str]:
    """Return the empty directories beside what a script uses: it may look into them.

    Args:
        home: the script's directory.
        names: of files below it.
    """
    found = []
    for used in {Path(), *(above for name in names for above in Path(name).parents)}:
        found += [
            str(used / each.name)
            for each in (home / used).iterdir()
            if each.is_dir() and not each.name.startswith(".") and not any(each.iterdir())
        ]
    return sorted(set(found))


def _copy(home: Path, names: Sequence[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / name, target / name)


def _make_certificates(directory: Path) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    made = make_server_certificates(["localhost"], now=now, lifetime=_CERTIFICATE_LIFETIME)
    directory.mkdir()
    write_atomically(directory / "ca.crt", made.ca)
    write_atomically(directory / "server.crt", made.certificate)
    write_atomically(directory / "server.key", made.key, mode=0o600)
