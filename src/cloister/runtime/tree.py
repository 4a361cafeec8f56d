"""The mount tree of a manifest, from ``fs.root``, ``fs.mounts`` and the pseudo file systems.

Most of the tree is nodes of ours. A few places belong to the kernel (tmpfs, procfs, devices); there
the tree has an empty mount point and the sandbox mounts over it.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import InputError
from cloister.fuse.filesystem import Caller
from cloister.manifest.model import Manifest, Mount, RootMount
from cloister.manifest.uris import DEVICE, FILE, normalise
from cloister.runtime.directory import host_node
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.interpreter import place_interpreter
from cloister.runtime.keyring import DEFAULT_KEY, Keyring
from cloister.runtime.machine import SHOWN_OF_SYSFS, ListedDirectory, sysctl_directory
from cloister.runtime.nodes import Directory, MountPoint, Node, Symlink, SyntheticDirectory
from cloister.runtime.policy import ReadOnlyRules, is_below
from cloister.runtime.pseudo import AbsentFile
from cloister.runtime.scene import Scene

KERNEL_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HIDDEN = "/proc/.cloister"
"""Where nodes wait that are bound over what the kernel mounts; procfs hides this directory."""

ABSENT_FILE, EMPTY_DIRECTORY = "absent-file", "empty-directory"
"""Names there of what covers the files and directories of procfs that are not shown."""

_LINKS_IN_DEV = {
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "fd": "/proc/self/fd",
    "ptmx": "pts/ptmx",
}
_MAX_READ = 1 << 20


@dataclass(frozen=True)
class KernelMount:
    """Something that the sandbox mounts over the tree.

    Attributes:
        kind: ``tmpfs``, ``proc``, ``devpts``, ``bind`` of a host device, or ``tree`` for a part
            of the tree itself.
        path: absolute, inside the tree.
        source: of a ``bind``, the host's path; of a ``tree``, the name in ``HIDDEN``.
    """

    kind: str
    path: str
    source: str = ""


@dataclass
class Tree:
    """The root node and what the kernel has to mount over it, in order."""

    root: Directory
    kernel_mounts: list[KernelMount] = field(default_factory=list)

    def place(self, path: str, node: Node, source: str) -> None:
        """Put ``node`` at an absolute path; missing directories on the way are made up.

        Args:
            path: where, inside the tree.
            node: what.
            source: the manifest key, for messages.

        Raises:
            InputError: something on the way is not a directory.
        """
        *way, name = _parts(path)
        directory: Node = self.root
        so_far = ""
        for part in way:
            so_far += f"/{part}"
            directory = _step(directory, os.fsencode(part), f"{source}: {so_far}")
        if not isinstance(directory, Directory):
            raise InputError(f"{source}: {so_far} is not a directory, so {path} cannot be there")
        directory.mounted[os.fsencode(name)] = node

    def _covered_by_kernel(self, path: str) -> bool:
        """Tell whether a kernel's mount hides what the tree has at ``path``."""
        return any(is_below(path, mount.path) for mount in self.kernel_mounts)

    def place_anywhere(self, path: str, node: Node, source: str) -> None:
        """Put ``node`` at a path that may lie below what the kernel mounts.

        There the node gets a hidden place, from which the sandbox binds it to where it belongs.
        """
        if not self._covered_by_kernel(path):
            self.place(path, node, source)
            return
        hidden = str(len(self.kernel_mounts))
        self.place(f"{HIDDEN}/{hidden}", node, source)
        self.kernel_mounts.append(KernelMount("tree", path, hidden))

    def mount_by_kernel(self, mount: KernelMount, mode: int, source: str) -> None:
        """Make an empty mount point and leave the rest to the sandbox."""
        if not self._covered_by_kernel(mount.path):
            is_directory = stat.S_ISDIR(mode)
            node = SyntheticDirectory() if is_directory else MountPoint(mode)
            self.place(mount.path, node, source)
        self.kernel_mounts.append(mount)

    def find(self, path: str) -> Node:
        """Return the node of an absolute path that is not the kernel's.

        Raises:
            OSError: there is none.
        """
        node: Node = self.root
        for part in _parts(path):
            if not isinstance(node, Directory):
                raise NotADirectoryError(path)
            name = os.fsencode(part)
            node = node.mounted.get(name) or node.child(name)
        return node

    def read(self, path: str) -> bytes:
        """Read a whole file of the tree with all its checks, as the program would.

        Raises:
            OSError: it does not exist, or its mount or the manifest's rules refuse it.
        """
        return read_node(self.find(path))


def read_node(node: Node) -> bytes:
    """Read a whole file with all its checks, as the program would.

    Raises:
        OSError: its mount or the manifest's rules refuse it.
    """
    handle = node.open(os.O_RDONLY, Caller(os.getuid(), os.getgid(), os.getpid()))
    content = b""
    try:
        while piece := bytes(handle.read(len(content), _MAX_READ)):
            content += piece
    finally:
        handle.release()
    return content


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part]


def _step(directory: Node, name: bytes, where: str) -> Node:
    """Return the directory ``name``, pinned in its parent so that mounts below it last."""
    if not isinstance(directory, Directory):
        raise InputError(f"{where}: the way there leads through a file")
    node = directory.mounted.get(name)
    if node is None:
        try:
            node = directory.child(name)
        except FileNotFoundError:
            node = SyntheticDirectory()
        directory.mounted[name] = node
    return node


def build_tree(
    manifest: Manifest, scene: Scene, keys: Keyring, base: Path, attestation: Directory
) -> Tree:
    """Build the tree that a manifest describes.

    Args:
        manifest: the validated manifest.
        scene: rules and reporting for everything that comes from the host.
        keys: wrap keys of the encrypted mounts.
        base: directory to which relative URIs belong: that of the manifest.
        attestation: ``/dev/attestation``.

    Raises:
        InputError: a mount names something that does not exist, or cannot be where it should.
    """

    def encrypted(host: str, path: str, key_name: str) -> EncryptedNode:
        return EncryptedNode(scene, keys, host, path, key_name)

    scene.encrypted = encrypted
    root = _node_of(manifest.fs.root or RootMount(uri="file:."), scene, base, "fs.root")
    if not isinstance(root, Directory):
        raise InputError("fs.root: its uri does not name a directory")
    tree = Tree(root)
    _place_pseudo_files(tree, scene, attestation)
    for number, mount in enumerate(manifest.fs.mounts):
        source = f"fs.mounts[{number}]"
        if mount.type == "tmpfs":
            tree.mount_by_kernel(KernelMount("tmpfs", _clean(mount.path)), stat.S_IFDIR, source)
        elif mount.uri is not None and mount.uri.startswith(DEVICE):
            device = KernelMount("bind", _clean(mount.path), mount.uri.removeprefix(DEVICE))
            tree.mount_by_kernel(device, stat.S_IFREG | 0o666, source)
        else:
            tree.place_anywhere(mount.path, _node_of(mount, scene, base, source), source)
    program = posixpath.join(manifest.fs.start_dir, manifest.libos.entrypoint)
    place_interpreter(tree, program)
    return tree


def uri_node(manifest: Manifest, scene: Scene, base: Path, uri: str) -> Node:
    """Return the node of a ``file:`` URI, encrypted if an encrypted mount covers it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = _uri_path(uri)
    mounts: list[Mount | RootMount] = [*manifest.fs.mounts]
    if manifest.fs.root is not None:
        mounts.append(manifest.fs.root)
    covering = [
        (len(covered), key_of(mount) if mount.type == "encrypted" else None)
        for mount in mounts
        if mount.uri is not None and _covers(covered := _uri_path(mount.uri), path)
    ]
    _, key_name = max(covering, default=(0, None), key=lambda found: found[0])
    return host_node(scene, os.path.join(base, path), path, key_name)


def _covers(directory: str, path: str) -> bool:
    return is_below(path, directory) or (directory == "." and not path.startswith(("/", "..")))


def key_of(mount: Mount | RootMount) -> str:
    """Return the name of an encrypted mount's key."""
    return mount.key_name or DEFAULT_KEY


def _uri_path(uri: str) -> str:
    return normalise(uri.removeprefix(FILE).removeprefix("dir:") or ".")


def _clean(path: str) -> str:
    return "/" + "/".join(_parts(path))


def _node_of(mount: Mount | RootMount, scene: Scene, base: Path, source: str) -> Node:
    """Return the node of a chroot or encrypted mount."""
    if mount.uri is None or mount.type not in ("chroot", "encrypted"):
        raise InputError(
            f"{source}: a mount of type {mount.type} cannot be served",
            hint="use chroot, encrypted or tmpfs",
        )
    path = _uri_path(mount.uri)
    host = os.path.realpath(os.path.join(base, path))
    scene.roots.append(host)
    key_name = key_of(mount) if mount.type == "encrypted" else None
    try:
        return host_node(scene, host, path, key_name)
    except FileNotFoundError as error:
        raise InputError(
            f"{source}: {mount.uri} does not exist (looked for {host})",
            hint="create it before the start, or correct the uri; relative ones start at "
            "the manifest's directory",
        ) from error


def _place_pseudo_files(tree: Tree, scene: Scene, attestation: Directory) -> None:
    """Put ``/proc``, ``/dev`` and ``/sys`` over whatever the root holds there."""
    tree.mount_by_kernel(KernelMount("proc", "/proc"), stat.S_IFDIR, "/proc")
    tree.place(f"{HIDDEN}/{ABSENT_FILE}", AbsentFile(), "/proc")
    tree.place(f"{HIDDEN}/{EMPTY_DIRECTORY}", SyntheticDirectory(), "/proc")
    tree.place_anywhere("/proc/sys", sysctl_directory(), "/proc/sys")
    dev = SyntheticDirectory()
    tree.place("/dev", dev, "/dev")
    for name in KERNEL_DEVICES:
        device = f"/dev/{name}"
        if Path(device).is_char_device():
            tree.mount_by_kernel(KernelMount("bind", device, device), stat.S_IFREG | 0o666, device)
    tree.mount_by_kernel(KernelMount("tmpfs", "/dev/shm"), stat.S_IFDIR, "/dev/shm")  # noqa: S108
    tree.mount_by_kernel(KernelMount("devpts", "/dev/pts"), stat.S_IFDIR, "/dev/pts")
    for name, target in _LINKS_IN_DEV.items():
        dev.mounted[name.encode()] = Symlink(target.encode())
    dev.mounted[b"attestation"] = attestation
    tree.place("/sys", SyntheticDirectory(), "/sys")
    information = Scene(ReadOnlyRules(), scene.report, scene.uid, scene.gid, unbuffered=True)
    for directory, shown in SHOWN_OF_SYSFS.items():
        if Path(directory).is_dir():
            tree.place(directory, ListedDirectory(information, directory, shown), directory)
