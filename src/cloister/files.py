"""Files that appear whole or not at all, and the directories where Cloister keeps its own."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from cloister.errors import InputError

_TEMPORARY = re.compile(r"(?P<stem>.*)[0-9a-f]{12}\.tmp", re.DOTALL)


@contextlib.contextmanager
def atomic_output(path: Path, *, mode: int = 0o644, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when the block ends without an exception.

    The bytes are written to a file without a name, synced, named ``path``, and the directory is
    synced. On any exception, Ctrl-C included, nothing is left and ``path`` is untouched; where
    the file system has no nameless files, only SIGKILL leaves ``.NAME.<12 hex digits>.tmp``.

    Args:
        path: the final name.
        mode: permission bits before the umask.
        replace: False refuses an existing ``path`` (also one that appears meanwhile).

    Raises:
        InputError: ``path`` exists and ``replace`` is False or it is no regular file (a device is
            not replaced either way), or its directory does not exist.
        OSError: the disk refused.
    """
    if not replace and path.exists():
        raise _exists(path)
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path}: is no regular file, and would be replaced by one",
            hint="name a file, or - for standard output where the command knows it",
        )
    try:
        descriptor, temporary = create_nameless(path, mode)
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
            _give_name(descriptor, temporary, path, replace=replace)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _give_name(descriptor: int, temporary: Path | None, path: Path, *, replace: bool) -> None:
    if not replace:
        try:
            link_open_file(descriptor, temporary, path)
        except FileExistsError as error:
            raise _exists(path) from error
        return
    if temporary is None:  # a link replaces nothing, a rename needs a name
        temporary = _temporary_name(path)
        link_open_file(descriptor, None, temporary)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _exists(path: Path) -> InputError:
    return InputError(
        f"{path}: already exists; it is never overwritten",
        hint="choose another name, or move the old file away",
    )


def create_nameless(path: Path, mode: int) -> tuple[int, Path | None]:
    """Create a file in the directory of ``path`` that vanishes if this process ends too early.

    Returns:
        the descriptor, open for both directions, and None; or, where the file system knows no
        such files, the descriptor and the file's temporary name, which the caller removes.

    Raises:
        OSError: the host refuses.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(path.parent, flags | os.O_TMPFILE, mode), None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS):
                raise
    temporary = _temporary_name(path)
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL, mode), temporary


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{_temporary_stem(path)}{os.urandom(6).hex()}.tmp")


def _temporary_stem(path: Path) -> str:
    """Return how temporary names of ``path`` begin; a name has at most 255 bytes."""
    return os.fsdecode(b"." + os.fsencode(path.name)[:200] + b".")


def leftovers(paths: Iterable[Path]) -> list[Path]:
    """Return temporary files that killed processes left when they wrote ``paths``."""
    stems: dict[Path, set[str]] = {}
    for path in paths:
        stems.setdefault(path.parent, set()).add(_temporary_stem(path))
    return [
        entry
        for directory, wanted in stems.items()
        for entry in directory.iterdir()
        if (match := _TEMPORARY.fullmatch(entry.name)) and match["stem"] in wanted
    ]


def link_open_file(descriptor: int, temporary: Path | None, target: Path) -> None:
    """Give a file of :func:`create_nameless` a name.

    Raises:
        FileExistsError: ``target`` exists; it is not replaced.
        OSError: the host refuses.
    """
    if temporary is not None:
        os.link(temporary, target)
        return
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Only with a directory descriptor does Python pass AT_SYMLINK_FOLLOW, which /proc needs.
        source = f"/proc/self/fd/{descriptor}"
        os.link(source, target, src_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


WRITE_ERRORS: Final = (OSError, InputError)
"""What :func:`write_atomically` raises, for those who go on without: of caches, for example."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write ``data`` to ``path`` whole or not at all; see :func:`atomic_output`."""
    with atomic_output(path, mode=mode, replace=replace) as stream:
        stream.write(data)


def write_together(files: Mapping[Path, bytes | None]) -> tuple[Path, ...]:
    """Write several files whole, or none of them if anything goes wrong before all are on disk.

    Args:
        files: name -> content, in the order in which they get their names; a name with None is one
            that must not exist afterwards.

    Returns:
        The names that were written.

    Raises:
        InputError, OSError: as :func:`atomic_output`.
    """
    with contextlib.ExitStack() as stack:
        # The stack gives names in reverse order, when all contents are safely on disk.
        for path, data in reversed(list(files.items())):
            if data is not None:
                stack.enter_context(atomic_output(path)).write(data)
    for path, data in files.items():
        if data is None:
            path.unlink(missing_ok=True)
    return tuple(path for path, data in files.items() if data is not None)


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


def make_private_directory(path: Path) -> None:
    """Make a directory and what is missing above it, for this user only whatever the umask is."""
    for missing in reversed([one for one in (path, *path.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    if value and Path(value).is_absolute():
        return Path(value) / "cloister"
    try:
        return Path.home() / default / "cloister"
    except RuntimeError as error:  # neither $HOME nor an entry in the list of users
        raise InputError(
            "this user has no home directory", hint=f"set HOME or {variable} to a directory"
        ) from error


def filesystem_of(directory: Path) -> str | None:
    """Return the kind of file system that ``directory`` lies on, e.g. ``tmpfs``.

    None where the kernel's list of mounts (``/proc/self/mountinfo``) does not tell.
    """
    try:
        device = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        # proc(5): number, parent, device, root, place, options ... "-" kind source options
        before, _, behind = line.partition(" - ")
        if before.split(" ")[2:3] == [wanted] and behind:
            return behind.split(" ")[0]
    return None
