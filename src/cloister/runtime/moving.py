"""Renaming a directory of encrypted files, each of which is bound to its path."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from cloister.encrypted.paths import holds_content
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.nodes import refuse
from cloister.runtime.scene import Scene


def _directories(top: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every directory below and its files, parents first; ``os.walk`` fails where it is deep.

    Raises:
        OSError: the host does not list one.
    """
    waiting = [top]
    while waiting:
        host = waiting.pop()
        with os.scandir(host) as listing:
            entries = list(listing)
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield host, [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]


def move_tree(scene: Scene, key_name: str, old: tuple[str, str], new: tuple[str, str]) -> None:
    """Move a directory of encrypted files, each of which is bound to its path.

    The program sees one step. A crash of the machine may leave some of the files in either
    directory, all of them whole and bound to where they are.

    Args:
        scene: what its nodes share.
        key_name: name of the key of all files below.
        old: host path and URI path of the directory.
        new: those that it gets; at most an empty directory is there.

    Raises:
        OSError: ENOTEMPTY: something is there; EACCES: a file below does not open; EXDEV: the host
            has a symbolic link below. Nothing was moved.
    """
    (old_host, old_path), (new_host, new_path) = old, new
    open_files = {node.place.host: node for node in scene.opened if not node.place.is_lost}
    moves: list[tuple[EncryptedNode, str, str]] = []
    others: list[tuple[str, str]] = []
    directories: list[tuple[str, os.stat_result]] = []
    for host, files in _directories(old_host):
        below = host[len(old_host) :]
        if any(os.path.islink(f"{host}/{name}") for name in files):
            refuse(errno.EXDEV)  # a link of the host's: what it leads to is bound to this path
        directories.append((below, os.stat(host)))
        for name in files:
            source, target = f"{host}/{name}", f"{new_host}{below}/{name}"
            if not holds_content(name) or not stat.S_ISREG(os.lstat(source).st_mode):
                others.append((source, target))
                continue
            node = open_files.get(source)
            if node is None and scene.encrypted is not None:
                node = scene.encrypted(source, f"{old_path}{below}/{name}", key_name)
            if node is not None:
                node.require_movable(f"{new_path}{below}/{name}")
                moves.append((node, target, f"{new_path}{below}/{name}"))
    if os.path.isdir(new_host):
        os.rmdir(new_host)
    for below, status in directories:
        os.mkdir(f"{new_host}{below}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    for node, target, path in moves:
        node.rename(target, path, 0)
    for source, target in others:
        with contextlib.suppress(FileNotFoundError):  # a recovery file that is needed no more
            os.rename(source, target)
    for below, status in reversed(directories):
        os.rmdir(f"{old_host}{below}")
        os.chmod(f"{new_host}{below}", stat.S_IMODE(status.st_mode))
        os.utime(f"{new_host}{below}", ns=(status.st_atime_ns, status.st_mtime_ns))
