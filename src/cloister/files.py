"""Files that appear whole or not at all, and the directories where Cloister keeps its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cloister.errors import InputError


@contextlib.contextmanager
def atomic_output(path: Path, *, mode: int = 0o644, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when the block ends without an exception.

    The bytes are written beside ``path``, synced, renamed over it, and the directory is synced.
    On any exception, Ctrl-C included, the temporary file is removed and ``path`` is untouched.

    Args:
        path: the final name.
        mode: permission bits before the umask.
        replace: False refuses an existing ``path`` (also one that appears meanwhile).

    Raises:
        InputError: ``path`` exists and ``replace`` is False, or its directory does not exist.
        OSError: the disk refused.
    """
    if not replace and path.exists():
        raise InputError(f"{path}: already exists; it is never overwritten")
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent}: no such directory, so {path.name} cannot be written there",
            hint=f"mkdir -p {path.parent}",
        ) from error
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _give_name(temporary, path, replace=replace)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _give_name(temporary: Path, path: Path, *, replace: bool) -> None:
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise InputError(f"{path}: already exists; it is never overwritten") from error


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write ``data`` to ``path`` whole or not at all; see :func:`atomic_output`."""
    with atomic_output(path, mode=mode, replace=replace) as stream:
        stream.write(data)


def sync_directory(directory: Path) -> None:
    """Make renames, creations and removals in ``directory`` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_home() -> Path:
    """Cloister's own data (the simulated platform's keys): ``$XDG_DATA_HOME/cloister``."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def config_home() -> Path:
    """Cloister's configuration (the default signing key): ``$XDG_CONFIG_HOME/cloister``."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def cache_home() -> Path:
    """What can be made again (hashes of trusted files): ``$XDG_CACHE_HOME/cloister``."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    base = Path(value) if value and Path(value).is_absolute() else Path.home() / default
    return base / "cloister"
