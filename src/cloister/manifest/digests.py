"""Digests of trusted files: hashed, or remembered where nothing changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.errors import CloisterError
from cloister.manifest.cache import HashCache
from cloister.manifest.hashing import Progress, ShowProgress, hash_files, unseen
from cloister.manifest.index import INDEX_VERSION, UNKNOWN_SIZE, TrustedEntry
from cloister.manifest.tree import FileTree, Seen
from cloister.manifest.trusted import Candidate, Problem


@dataclass(frozen=True)
class Digests:
    """The result.

    Attributes:
        entries: digests of every trusted file, by its normalised URI path.
        hashed: how many files were hashed now.
        settled: whether equal stamps will mean equal digests, as
            :mod:`cloister.manifest.hashing` explains; false if another user may see more.
        left_out: files below trusted directories that this user may not read.
    """

    entries: Mapping[str, TrustedEntry]
    hashed: int
    settled: bool
    left_out: tuple[str, ...] = ()


def look(candidates: Mapping[str, Candidate], tree: FileTree, problem: Problem) -> dict[str, Seen]:
    """Return size and stamp of each file that is to be hashed, by its name on this machine.

    Raises:
        CloisterError: made by ``problem``: a file that the list names is not there.
    """
    seen: dict[str, Seen] = {}
    for candidate in candidates.values():
        if candidate.sha256 is None:
            try:
                seen[candidate.host] = tree.seen(candidate.host)
            except OSError as error:
                if candidate.named:
                    raise _unreadable(candidate, error, problem) from error
    return seen


def state_of(candidates: Mapping[str, Candidate], seen: Mapping[str, Seen]) -> bytes:
    """Return a digest that changes whenever the index of the files would, 32 bytes.

    It covers their names, their stamps and the hashes that are given.
    """
    names = os.fsencode("\0".join(candidates))
    known = [_state(candidate, seen.get(candidate.host)) for candidate in candidates.values()]
    kind = INDEX_VERSION.to_bytes(4, "little")
    return hashlib.sha256(kind + hashlib.sha256(names).digest() + b"".join(known)).digest()


def _state(candidate: Candidate, seen: Seen | None) -> bytes:
    if seen is not None:
        return b"seen" + seen.stamp
    return b"none" if candidate.sha256 is None else b"told" + candidate.sha256


def digest(
    candidates: Mapping[str, Candidate],
    seen: Mapping[str, Seen],
    cache: HashCache,
    problem: Problem,
    *,
    whole: bool,
    today: int,
    show: ShowProgress = unseen,
) -> Digests:
    """Return the digests of all candidates, from the cache where a file has not changed.

    Args:
        candidates: what :func:`cloister.manifest.trusted.expand` found.
        seen: what :func:`look` found.
        cache: digests of earlier builds.
        problem: makes the errors.
        whole: whether digests of whole files are needed, besides those of their chunks.
        today: days since 1970, for the cache.
        show: shows how far the hashing is.

    Raises:
        CloisterError: a named file cannot be read, or a file changed meanwhile.
    """
    entries: dict[str, TrustedEntry] = {}
    missing: list[tuple[str, int]] = []
    for path, candidate in candidates.items():
        if candidate.sha256 is not None:
            entries[path] = TrustedEntry(UNKNOWN_SIZE, candidate.sha256, b"")
        elif candidate.host in seen:
            size, stamp = seen[candidate.host]
            known = cache.get(candidate.host, stamp)
            if known is None or (whole and not known.sha256):
                missing.append((path, size))
            else:
                entries[path] = known
    with show(sum(size for _, size in missing)) as progress:
        hashed = _hash(missing, candidates, problem, progress, whole=whole)
    entries.update((path, entry) for path, (_, entry) in hashed.items())
    new = {
        candidates[path].host: (stamp, entry)
        for path, (stamp, entry) in hashed.items()
        if stamp is not None
    }
    cache.store(new, seen, today)
    settled = all(stamp == seen[candidates[path].host].stamp for path, (stamp, _) in hashed.items())
    in_order = {path: entries[path] for path in candidates if path in entries}
    left_out = tuple(candidates[path].host for path, _ in missing if path not in hashed)
    return Digests(in_order, len(hashed), settled and not left_out, left_out)


def _hash(
    missing: Sequence[tuple[str, int]],
    candidates: Mapping[str, Candidate],
    problem: Problem,
    progress: Progress,
    *,
    whole: bool,
) -> dict[str, tuple[bytes | None, TrustedEntry]]:
    files = [(candidates[path].host, size) for path, size in missing]
    hashed = {}
    results = hash_files(files, whole=whole, progress=progress)
    for (path, _), result in zip(missing, results, strict=True):
        if not isinstance(result, OSError):
            hashed[path] = result
        elif candidates[path].named or not isinstance(result, PermissionError):
            raise _unreadable(candidates[path], result, problem) from result
    return hashed


def _unreadable(candidate: Candidate, error: OSError, problem: Problem) -> CloisterError:
    return problem(candidate.line, f"{candidate.host}: {error.strerror}", None)
