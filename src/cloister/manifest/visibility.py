"""Under which paths a program finds a host file."""

from __future__ import annotations

from collections.abc import Iterator

from cloister.manifest.model import Manifest, Mount, RootMount
from cloister.manifest.uris import normalise

_ROOT = RootMount(uri="file:.")


def inside_paths(manifest: Manifest, path: str) -> list[str]:
    """Return the paths inside under which a host file is found, as far as mounts tell.

    Args:
        manifest: whose mounts they are.
        path: normalised URI path of the host file.

    Returns:
        Absolute paths; none if no mount reaches the file or all are hidden by later mounts.
    """
    return list(dict.fromkeys(inside for _, inside in _shown(manifest, path)))


def is_only_encrypted(manifest: Manifest, path: str) -> bool:
    """Tell whether a host file is found, and only through encrypted mounts.

    Args:
        manifest: whose mounts they are.
        path: normalised URI path of the host file.
    """
    kinds = {mount.type for mount, _ in _shown(manifest, path)}
    return kinds == {"encrypted"}


def _shown(manifest: Manifest, path: str) -> Iterator[tuple[RootMount | Mount, str]]:
    """Yield the mounts that show a file, with its path inside."""
    mounts: list[RootMount | Mount] = [manifest.fs.root or _ROOT, *manifest.fs.mounts]
    for number, mount in enumerate(mounts):
        inside = _place(mount, path)
        later = [_at(other) for other in mounts[number + 1 :]]
        if inside is not None and not any(_covers(other, inside) for other in later):
            yield mount, inside


def _at(mount: RootMount | Mount) -> str:
    return mount.path if isinstance(mount, Mount) else "/"


def _covers(directory: str, path: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _place(mount: RootMount | Mount, path: str) -> str | None:
    """Return where ``mount`` would show ``path``, None if it does not."""
    if mount.uri is None or mount.type == "tmpfs":
        return None
    host = normalise(mount.uri.partition(":")[2])
    if path == host:
        return _at(mount)
    if host == ".":
        below = None if path.startswith("/") or path.split("/", maxsplit=1)[0] == ".." else path
    else:
        prefix = f"{host.rstrip('/')}/"
        below = path[len(prefix) :] if path.startswith(prefix) else None
    return None if below is None else f"{_at(mount).rstrip('/')}/{below}"
