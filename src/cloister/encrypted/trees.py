"""Many files at once: which file becomes which, and doing all that can be done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cloister.encrypted.bulk import PARALLEL_FROM, Advance
from cloister.encrypted.paths import holds_content
from cloister.encrypted.workers import forked_map
from cloister.errors import CloisterError, InputError


class Pair(NamedTuple):
    """One file to be made from another.

    ``relative`` is the part of the source's name that stays the same: its last part, or its path
    below the directory that was named.
    """

    source: Path
    target: Path
    relative: str


class Failure(NamedTuple):
    """A file or directory with which it did not work."""

    path: Path
    error: CloisterError | OSError


class Found(NamedTuple):
    """What lies below the names that were given.

    ``files`` with their paths below the directory that was named; ``directories`` below it, by the
    same paths; ``skipped`` with the reason; ``failed`` could not be looked at.
    """

    files: list[tuple[Path, str]]
    directories: list[str]
    skipped: list[tuple[Path, str]]
    failed: list[Failure]


class Plan(NamedTuple):
    """Files to be made, and the directories for them; the rest as in :class:`Found`."""

    pairs: list[Pair]
    directories: list[Path]
    skipped: list[tuple[Path, str]]
    failed: list[Failure]


def find(paths: Iterable[Path]) -> Found:
    """Return the files that are meant: those named, and all below the directories named.

    Recovery files and leftovers of interrupted commands below a directory are left out; links to
    directories are skipped.

    Raises:
        InputError: one of ``paths`` does not exist.
    """
    found = Found([], [], [], [])
    for path in paths:
        if path.is_dir():
            _walk(path, found)
        elif path.exists():
            found.files.append((path, path.name))
        else:
            raise InputError(f"{path}: no such file or directory")
    return found


def _walk(top: Path, found: Found) -> None:
    def refuse(error: OSError) -> None:
        found.failed.append(Failure(Path(error.filename), error))

    for folder, directories, names in os.walk(top, onerror=refuse):
        directories.sort()
        here = Path(folder)
        found.directories.append(here.relative_to(top).as_posix())
        found.skipped.extend(
            (here / name, "a link to a directory, which is not followed")
            for name in directories
            if (here / name).is_symlink()
        )
        for name in sorted(filter(holds_content, names)):
            path = here / name
            try:
                if path.is_file():
                    found.files.append((path, path.relative_to(top).as_posix()))
                else:
                    found.skipped.append((path, _why_not(path)))
            except OSError as error:
                found.failed.append(Failure(path, error))


def _why_not(path: Path) -> str:
    return "a link to nothing" if path.is_symlink() else "neither file nor directory"


def in_place(found: Found) -> list[Path]:
    """Return the files that are to be changed where they lie, each once whatever links to it."""
    places: dict[Path, Path] = {}
    for path, _ in found.files:
        places.setdefault(path.resolve(), path)
    return list(places.values())


def share_content(paths: Sequence[Path]) -> bool:
    """Tell whether two of the files are one under two names (hard links)."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # what is to be done with it says why
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                return True
            seen.add((status.st_dev, status.st_ino))
    return False


def pair(sources: Sequence[Path], target: Path, *, directory: bool = False) -> Plan:
    """Say which file becomes which.

    One file becomes ``target``, or ``target/NAME`` if that is a directory or, as ``directory``
    says, is to be one. The files of one
    directory keep their places below ``target``. Of several sources each keeps its own name below
    ``target``.

    Raises:
        InputError: a source does not exist, two files would become one, or a directory would be
            written into itself.
    """
    if len(sources) == 1 and not sources[0].is_dir():
        find(sources)
        if directory:
            _require_directory(target, "leave out the slash behind it")
        directory = directory or target.is_dir()
        into = target / sources[0].name if directory else target
        pairs = _checked([Pair(sources[0], into, sources[0].name)])
        return Plan(pairs, [target] if directory else [], [], [])
    _require_directory(target, "several files need a directory")
    plan = Plan([], [target], [], [])
    for source in sources:
        below = target if len(sources) == 1 or not source.is_dir() else target / source.name
        if source.is_dir():
            _refuse_nesting(source, target)
        found = find([source])
        plan.pairs.extend(Pair(path, below / relative, relative) for path, relative in found.files)
        plan.directories.extend(below / relative for relative in found.directories)
        plan.skipped.extend(found.skipped)
        plan.failed.extend(found.failed)
    _checked(plan.pairs)
    return plan


def _require_directory(target: Path, instead: str) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; {instead}")


def make_directories(plan: Plan, mode: int = 0o777) -> None:
    """Make the directories of a plan; what cannot be made joins its failures."""
    for directory in plan.directories:
        try:
            directory.mkdir(mode, parents=True, exist_ok=True)
        except OSError as error:
            plan.failed.append(Failure(directory, error))


def _refuse_nesting(source: Path, target: Path) -> None:
    outer, inner = source.resolve(), target.resolve()
    if inner == outer or outer in inner.parents:
        raise InputError(
            f"{target}: lies in {source}, which would be written into itself",
            hint="choose a directory elsewhere",
        )


def _checked(pairs: list[Pair]) -> list[Pair]:
    taken: dict[Path, Path] = {}
    for each in pairs:
        other = taken.setdefault(each.target, each.source)
        if other != each.source:
            raise InputError(f"{each.target}: both {other} and {each.source} would become it")
        if each.target.exists() and each.target.samefile(each.source):
            raise InputError(f"{each.target}: source and result are the same file")
    return pairs


def run(
    paths: Sequence[Path],
    operate: Callable[[int, int, Advance], object],
    *,
    jobs: int,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[int, object]]:
    """Do something with each file; errors do not stop the rest.

    Args:
        paths: the files, for their sizes.
        operate: is called with the index of a file, the jobs it may use itself, and what to tell
            of progress. It may run in another process: its result must be picklable.
        jobs: processes to use. Small files are dealt out, large files are done by all together.
        advance: is told how many more host bytes are done.

    Yields:
        the index of each file when it is done, and the result or the error.
    """
    sizes = [_size(path) for path in paths]
    small = [index for index, size in enumerate(sizes) if size < PARALLEL_FROM]
    for place, answer in forked_map(lambda index: operate(index, 1, _nobody), small, jobs):
        advance(sizes[small[place]])
        yield small[place], answer
    for index, size in enumerate(sizes):
        if size >= PARALLEL_FROM:
            try:
                yield index, operate(index, jobs, advance)
            except (CloisterError, OSError) as error:
                yield index, error


def _nobody(_: int) -> None:
    pass


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # the operation itself will say what is wrong
