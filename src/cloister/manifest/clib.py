"""``runtimedir()``: a directory of the C library, to be mounted at ``/lib``.

Graphene and Gramine bring a patched C library there. Ours needs none, so the directory holds links
to the host's own; the runtime follows links of the host, and trusts files under their link's name.
"""

from __future__ import annotations

from pathlib import Path

from cloister.errors import ManifestError
from cloister.files import data_home
from cloister.manifest.libraries import DEFAULT_DIRECTORIES

# The parts of glibc, as its manual lists them under "Library Summary"; old programs name those that
# have since been merged into libc.so.6.
_PARTS = (
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
    "libanl.so.1",
    "libnsl.so.1",
    "libnss_compat.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libBrokenLocale.so.1",
    "libthread_db.so.1",
)


def runtime_directory(libc: str = "glibc") -> Path:
    """Make the directory if it is missing, and return it.

    Args:
        libc: only ``glibc``.

    Raises:
        ManifestError: another C library is asked for.
    """
    if libc != "glibc":
        raise ManifestError(f"runtimedir({libc!r}): only glibc is there, and it is the host's own")
    directory = data_home() / "runtime" / libc
    directory.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        target = _on_host(part)
        link = directory / part
        if target is not None and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return directory


def _on_host(name: str) -> Path | None:
    for directory in DEFAULT_DIRECTORIES:
        path = Path(directory) / name
        if path.is_file():
            return path
    return None
