"""Virtual environments with a few of the packages of the one that runs the tests.

An enclave trusts all files of its Python. The environment of the tests has those of every example
and of the tools: 91,000, of which a program opens a few thousand.
"""

from __future__ import annotations

import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import tomli
from packaging.requirements import Requirement

import cloister

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
COMMAND = "#!{python}\nfrom cloister.__main__ import main\n\nmain()\n"


def bare_python(directory: Path) -> str:
    """Return an interpreter with the standard library only, made in an empty directory."""
    venv.create(directory, symlinks=True)
    return str(directory / "bin" / "python")


def cloister_with(directory: Path, *packages: str) -> str:
    """Return the ``cloister`` of an environment that has it, these packages and what they require.

    Args:
        directory: an empty one. The packages in it are links to those of the tests.
        packages: what to have besides, as pip would be told.
    """
    python = bare_python(directory)
    library = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = directory / "lib" / library / "site-packages"
    (site / "cloister").symlink_to(Path(cloister.__file__).parent)
    own = tomli.loads(PROJECT.read_text())["project"]["dependencies"]
    for found in _required([*own, *packages]):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (name.endswith(".pth") or (site / name).is_symlink()):
                (site / name).symlink_to(Path(str(found.locate_file(name))))
    command = directory / "bin" / "cloister"
    command.write_text(COMMAND.format(python=python))
    command.chmod(0o755)
    return str(command)


def _required(names: list[str]) -> Iterator[Distribution]:
    """Yield each of the distributions, and of those that they require, once."""
    waiting = [Requirement(name) for name in names]
    known: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        found = distribution(wanted.name)
        for extra in ("", *wanted.extras):
            if (found.name, extra) in known:
                continue
            known.add((found.name, extra))
            if not extra:
                yield found
            for line in found.requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
