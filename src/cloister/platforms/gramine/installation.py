"""The Gramine of this machine: its programs, its libraries, its version."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import PlatformError
from cloister.manifest.clib import runtime_directory
from cloister.manifest.libraries import read_dynamic
from cloister.manifest.template import BELOW_PREFIX
from cloister.manifest.trusted import LIBOS
from cloister.platforms.gramine.translation import Runtime
from cloister.provision.variables import LIBRARY

OLDEST, NEWEST = (1, 6), (1, 9)
PROGRAMS = ("gramine-direct", "gramine-sgx", "gramine-sgx-sign")
_INSTALL = "install Gramine 1.6 to 1.9: https://gramine.readthedocs.io/en/stable/installation.html"


@dataclass(frozen=True)
class Installation:
    """An installed Gramine.

    Attributes:
        program: its ``gramine-direct``, or another of its programs.
        directory: its libraries.
    """

    program: Path
    directory: Path

    @classmethod
    def here(cls) -> Installation:
        """Return the one in ``PATH``.

        Raises:
            PlatformError: there is none, or its libraries are not found.
        """
        found = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if found is None:
            raise PlatformError("Gramine is not installed", hint=_INSTALL)
        for directory in _library_directories(Path(found)):
            if (directory / LIBOS).is_file():
                return cls(Path(found), directory)
        raise PlatformError(
            f"{found}: no directory with Gramine's {LIBOS} belongs to it", hint=_INSTALL
        )

    @functools.cached_property
    def version(self) -> tuple[int, int]:
        """Major and minor version.

        Raises:
            PlatformError: it does not say, or is not one that this works with.
        """
        try:
            said = subprocess.run(
                [self.program, "--version"], capture_output=True, text=True, timeout=60, check=False
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise PlatformError(f"{self.program} does not start: {error}") from error
        match = re.search(r"Gramine (\d+)\.(\d+)", said)
        if match is None:
            raise PlatformError(
                f"{self.program} --version: expected Gramine VERSION", hint=_INSTALL
            )
        version = (int(match[1]), int(match[2]))
        if not OLDEST <= version <= NEWEST:
            raise PlatformError(
                f"Gramine {version[0]}.{version[1]} is installed, expected 1.6 to 1.9",
                hint=_INSTALL,
            )
        return version

    @property
    def title(self) -> str:
        """Name and version."""
        return "Gramine {}.{}".format(*self.version)

    def require(self, program: str) -> str:
        """Return the path of one of its programs.

        Raises:
            PlatformError: it is not there.
        """
        found = shutil.which(program)
        if found is None:
            raise PlatformError(f"{program} is not installed, but other parts of Gramine are")
        return found

    def libpal(self) -> bytes:
        """Return the loader that SGX measures.

        Raises:
            PlatformError: this Gramine was built without SGX.
        """
        path = self.directory / "sgx" / "libpal.so"
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise PlatformError(
                f"{path}: missing; this Gramine was built without SGX", hint=_INSTALL
            ) from error

    @property
    def libpal_path(self) -> Path:
        """Where :meth:`libpal` is."""
        return self.directory / "sgx" / "libpal.so"

    def runtime(self) -> Runtime:
        """Return what manifests name of it.

        Raises:
            PlatformError: a part is missing.
        """
        libos = self.directory / LIBOS
        glibc = self.directory / "runtime" / "glibc"
        if not glibc.is_dir():
            raise PlatformError(f"{glibc}: missing; Gramine brings its C library there")
        glibc = glibc.resolve()
        return Runtime(
            libos=str(libos),
            libos_sha256=hashlib.sha256(libos.read_bytes()).hexdigest(),
            directory=str(glibc),
            stand_in=str(runtime_directory()),
            version=self.version,
            can_provision=(glibc / LIBRARY).is_file(),
            beside_it=tuple(_needed_elsewhere(glibc / LIBRARY, glibc)),
        )


def _needed_elsewhere(library: Path, directory: Path) -> Iterator[str]:
    """Yield what a library needs that is not in ``directory``, but where the library really is."""
    home = library.resolve().parent
    waiting, seen = [library.resolve()], set[str]()
    while waiting:
        found = read_dynamic(str(waiting.pop()))
        for name in () if found is None else found[1].needed:
            if name in seen:
                continue
            seen.add(name)
            if not (directory / name).is_file() and (home / name).is_file():
                yield str(home / name)
                waiting.append(home / name)


def _library_directories(program: Path) -> Iterator[Path]:
    """Yield where the libraries of one of Gramine's programs may be: as it says, else the usual."""
    try:
        text = program.read_bytes()[:65536].decode("utf-8", "replace")
    except OSError:
        text = ""
    for match in re.finditer(r"(/[^\s\"'$]+)/(?:direct|sgx)\b", text):
        yield Path(match[1])
    prefixes = (program.parent.parent, program.resolve().parent.parent)
    for prefix in dict.fromkeys((*prefixes, Path("/usr"), Path("/usr/local"))):
        for below in BELOW_PREFIX:
            yield prefix / below
