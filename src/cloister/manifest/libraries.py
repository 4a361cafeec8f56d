"""Which shared libraries a program needs, and by which names the dynamic linker opens them.

Nothing is executed (the ``ldd`` script may run the program it is asked about). The search follows
ld.so(8): DT_RPATH, DT_RUNPATH, then the linker's default directories. Inside an enclave there is no
``/etc/ld.so.cache``, so a library that stands in several default directories may be opened by any
of these names; all are reported.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cloister.errors import ElfError
from cloister.sgx.elf import Dynamic, Elf

DEFAULT_DIRECTORIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
LINKER_CACHE = "/etc/ld.so.cache"

# What glibc loads by name while a program runs, e.g. when a thread is cancelled.
_LOADED_BY_LIBC = ("libgcc_s.so.1",)

# Directories of better-tuned variants that the linker tries first, by what the processor can do.
_VARIANTS = ("glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2")


class Libraries:
    """The libraries that a set of ELF files needs.

    Attributes:
        names: absolute names by which the dynamic linker may open what it needs, as they are
            found; the ELF interpreter included, the given files not.
        needs_cache: whether one is only found through :data:`LINKER_CACHE`.
    """

    def __init__(
        self,
        files: Iterable[str],
        *,
        default_directories: Sequence[str] = DEFAULT_DIRECTORIES,
        configured_directories: Sequence[str] | None = None,
    ) -> None:
        self._default = default_directories
        self._configured = (
            list(_configured_directories(Path("/etc/ld.so.conf")))
            if configured_directories is None
            else configured_directories
        )
        self.names: dict[str, None] = {}
        self.needs_cache = False
        self._seen: set[str] = set()
        self._found: dict[tuple[str, str], list[str]] = {}
        self._variants: dict[str, list[str]] = {}
        for file in files:
            self._visit(file, ())
        if self.names:
            for name in _LOADED_BY_LIBC:
                self._system_library(name, ())

    def _visit(self, file: str, inherited: tuple[str, ...]) -> None:
        """Follow what ``file`` needs.

        Args:
            file: its name.
            inherited: search path of those that loaded it (DT_RPATH reaches down, RUNPATH not).
        """
        if file in self._seen:
            return
        self._seen.add(file)
        read = read_dynamic(file)
        if read is None:
            return
        interpreter, dynamic = read
        if interpreter is not None:
            self._add(interpreter, ())
        origin = posixpath.dirname(file)
        own_rpath = () if dynamic.runpath else _expanded(dynamic.rpath, origin)
        passed_on = (*own_rpath, *inherited)
        search = (*_expanded(dynamic.runpath, origin), *passed_on)
        for name in dynamic.needed:
            self._library(name, search, passed_on)

    def _library(self, name: str, search: Sequence[str], passed_on: tuple[str, ...]) -> None:
        if "/" in name:
            self._add(name, passed_on)
            return
        for directory in search:
            found = self._in_directory(directory, name)
            for path in found:
                self._add(path, passed_on)
            if found:
                return
        self._system_library(name, passed_on)

    def _system_library(self, name: str, passed_on: tuple[str, ...]) -> None:
        found = [p for directory in self._default for p in self._in_directory(directory, name)]
        if not found:
            found = [p for folder in self._configured for p in self._in_directory(folder, name)]
            self.needs_cache = self.needs_cache or bool(found)
        for path in found:
            self._add(path, passed_on)

    def _in_directory(self, directory: str, name: str) -> list[str]:
        """Return the names under which the linker finds library ``name`` in ``directory``."""
        key = (directory, name)
        if key not in self._found:
            paths = (f"{folder}/{name}" for folder in self._with_variants(directory))
            self._found[key] = [
                path for path in paths if Path(path).is_file() and read_dynamic(path) is not None
            ]
        return self._found[key]

    def _with_variants(self, directory: str) -> list[str]:
        if directory not in self._variants:
            variants = (f"{directory}/{variant}" for variant in _VARIANTS)
            existing = [variant for variant in variants if Path(variant).is_dir()]
            self._variants[directory] = [directory, *existing]
        return self._variants[directory]

    def _add(self, path: str, inherited: tuple[str, ...]) -> None:
        path = posixpath.normpath(path)
        self.names[path] = None
        self._visit(path, inherited)


def read_dynamic(file: str) -> tuple[str | None, Dynamic] | None:
    """Return ELF interpreter and dynamic section of a file; None if it is no x86-64 ELF file."""
    try:
        with Path(file).open("rb") as stream:
            if stream.read(4) != b"\x7fELF":
                return None
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                elf = Elf(data, file)
                return elf.interpreter(), elf.dynamic()
    except (ElfError, OSError):
        return None


def _expanded(directories: Iterable[str], origin: str) -> tuple[str, ...]:
    expanded = (
        directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        for directory in directories
    )
    return tuple(directory for directory in expanded if directory.startswith("/"))


def _configured_directories(file: Path) -> Iterator[str]:
    """Yield the directories that ldconfig(8) puts into the linker's cache."""
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for included in sorted(_matching(file.parent, pattern)):
                    yield from _configured_directories(included)
        elif words:
            yield words[0]


def _matching(directory: Path, pattern: str) -> Iterator[Path]:
    absolute = directory / pattern
    return Path("/").glob(str(absolute.relative_to("/")))
