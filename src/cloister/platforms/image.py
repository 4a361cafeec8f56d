"""The runtime image that a simulated enclave measures in place of Gramine's ``libpal.so``.

It is an ELF file whose only segment carries this package's own files, so that MRENCLAVE changes
with every change of the runtime, and is the same on every machine that has the same version. It is
measured, never executed.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from cloister.sgx.elf import EHDR, EM_X86_64, ET_DYN, IDENT, PAGE_SIZE, PF_R, PHDR, PT_LOAD

_ARCHIVE_MAGIC = b"CLOISTER RUNTIME"
_NAME_LENGTH = struct.Struct("<I")
_FILE_SIZE = struct.Struct("<Q")


@functools.lru_cache(maxsize=1)
def runtime_image() -> bytes:
    """Return the image of the installed ``cloister`` package."""
    import cloister

    return image_of(package_files(Path(cloister.__file__).parent))


def image_of(files: Mapping[str, bytes]) -> bytes:
    """Return an x86-64 ELF file with one read-only segment that holds ``files``.

    Args:
        files: relative name, with ``/`` -> content; the order does not matter.
    """
    archive = archive_of(files)
    start = EHDR.size + PHDR.size
    size = start + len(archive)
    header = EHDR.pack(
        IDENT, ET_DYN, EM_X86_64, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, 1, 0, 0, 0
    )
    segment = PHDR.pack(PT_LOAD, PF_R, 0, 0, 0, size, size, PAGE_SIZE)
    return header + segment + archive


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """Return the canonical archive: sorted names, each with its length, then size and content."""
    parts = [_ARCHIVE_MAGIC, _NAME_LENGTH.pack(len(files))]
    for name in sorted(files, key=str.encode):
        encoded, content = name.encode(), files[name]
        parts += (_NAME_LENGTH.pack(len(encoded)), encoded, _FILE_SIZE.pack(len(content)), content)
    return b"".join(parts)


def package_files(package: Path) -> dict[str, bytes]:
    """Read the files of a package; what Python caches and hidden files are left out."""
    files = {}
    start = len(f"{package}/")
    for directory, below, names in os.walk(package):
        below[:] = [name for name in below if _counts(name)]
        for name in filter(_counts, names):
            path = f"{directory}/{name}"
            if os.path.isfile(path):  # noqa: PTH113  (as text: this is done at every start)
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                    files[path[start:]] = file.read()
    return files


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"
