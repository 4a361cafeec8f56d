"""Become an ordinary user on a machine made for root, then execute a command.

Usage, as root: python as_ordinary_user.py FUSE_MODE COMMAND...   (FUSE_MODE: octal, of /dev/fuse)

In a mount namespace of its own: ``/dev/fuse`` gets the mode, and what Python needs becomes readable
where it lies in root's home. Nothing outside changes.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
import tempfile
from pathlib import Path

from cloister.runtime import linux

NOBODY = 65534
FUSE_DEVICE = os.makedev(10, 229)


def closed_parent(path: Path) -> Path | None:
    """Return the topmost directory above ``path`` that others may not enter."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def open_up(paths: list[Path]) -> None:
    """Make ``paths`` reachable: cover closed directories, and put only these back."""
    closed = [(path, parent) for path in paths if (parent := closed_parent(path)) is not None]
    kept = [(path, os.open(path, os.O_PATH)) for path, _ in closed]
    for parent in {parent for _, parent in closed}:
        linux.mount("none", str(parent), "tmpfs", 0, "mode=755")
    for path, descriptor in kept:
        path.mkdir(parents=True, exist_ok=True)
        linux.mount(f"/proc/self/fd/{descriptor}", str(path), None, linux.MS_BIND | linux.MS_REC)


def main() -> None:
    mode, *command = sys.argv[1:]
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with tempfile.TemporaryDirectory() as directory:
        device = Path(directory) / "fuse"
        os.mknod(device, stat.S_IFCHR, FUSE_DEVICE)
        device.chmod(int(mode, 8))
        linux.mount(str(device), "/dev/fuse", None, linux.MS_BIND)
    places = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(Path.cwd())}
    package = Path(linux.__file__).resolve().parents[2]
    open_up([*(Path(place).resolve() for place in places), package])
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
