"""The mount tree of a manifest, from ``fs.root``, ``fs.mounts`` and the pseudo file systems."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloister.errors import InputError
from cloister.manifest.uris import DEVICE, FILE, normalise
from cloister.runtime.directory import host_node
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.interpreter import place_interpreter
from cloister.runtime.keyring import DEFAULT_KEY, Keyring
from cloister.runtime.machine import SHOWN_OF_SYSFS, ListedDirectory, sysctl_directory
from cloister.runtime.names import host_name, resolver_configuration
from cloister.runtime.nodes import Directory, Node, Symlink, SyntheticDirectory
from cloister.runtime.policy import DeniedError, Intent, ReadOnlyRules, is_below
from cloister.runtime.pseudo import AbsentFile, PseudoFile
from cloister.runtime.scene import Scene
from cloister.runtime.tree import ABSENT_FILE, EMPTY_DIRECTORY, KernelMount, Tree

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest, Mount, RootMount

KERNEL_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_LINKS_IN_DEV = {
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "fd": "/proc/self/fd",
}

_TERMINALS = ("tty", "ptmx")


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
    tree = _rooted(manifest.fs.root or _DefaultRoot(), scene, base)
    _place_pseudo_files(tree, scene, attestation, terminals=manifest.cloister.terminals)
    for number, mount in enumerate(manifest.fs.mounts):
        _place_mount(tree, mount, scene, base, f"fs.mounts[{number}]")
    if manifest.sys.enable_extra_runtime_domain_names_conf:
        _place_names(tree, {mount.path for mount in manifest.fs.mounts})
    place_interpreter(tree, manifest.libos.entrypoint, manifest.fs.start_dir)
    return tree


def _rooted(root: RootMount | _DefaultRoot, scene: Scene, base: Path) -> Tree:
    """Return a tree of which only the root is there yet."""
    if root.type == "tmpfs":
        tree = Tree(SyntheticDirectory())
        tree.mount_by_kernel(KernelMount("tmpfs", "/"), stat.S_IFDIR, "fs.root")
        return tree
    node = _node_of(root, scene, base, "fs.root")
    if not isinstance(node, Directory):
        raise InputError("fs.root: its uri does not name a directory")
    return Tree(node)


def _place_mount(tree: Tree, mount: Mount, scene: Scene, base: Path, source: str) -> None:
    """Put one of ``fs.mounts`` where it belongs."""
    path = _clean(mount.path)
    if path.startswith("/proc"):
        from cloister.manifest.check import proc_problem

        found = proc_problem(path)
        if found is not None:
            raise InputError(f"{source}: {found[0]}", hint=found[1])
    if mount.type == "tmpfs":
        tree.mount_by_kernel(KernelMount("tmpfs", path), stat.S_IFDIR, source)
    elif mount.type == "untrusted_shm":
        _place_shared_memory(tree, path, _device_path(mount, source), scene, source)
    elif mount.uri is not None and mount.uri.startswith(DEVICE):
        _place_host(tree, path, _device_path(mount, source), source)
    else:
        tree.place(path, _node_of(mount, scene, base, source), source)


def _device_path(mount: Mount, source: str) -> str:
    """Return the host's path that a ``dev:`` URI names; Graphene's ``dev:tty`` is the terminal."""
    path = str(mount.uri).removeprefix(DEVICE)
    path = "/dev/tty" if path == "tty" else path
    if not path.startswith("/dev/"):
        raise InputError(f"{source}: {mount.uri}: expected a path below /dev")
    return posixpath.normpath(path)


def _place_host(tree: Tree, path: str, host: str, source: str) -> None:
    """Let the sandbox bind a device, or a directory of devices, of the host."""
    try:
        mode = os.stat(host).st_mode
    except OSError as error:
        raise InputError(f"{source}: {host}: {error.strerror}") from error
    kind = stat.S_IFDIR | 0o755 if stat.S_ISDIR(mode) else stat.S_IFREG | 0o666
    tree.mount_by_kernel(KernelMount("bind", path, host), kind, source)


def _place_shared_memory(tree: Tree, path: str, host: str, scene: Scene, source: str) -> None:
    """Show the files of a host's directory of shared memory that the rules allow.

    They are the host's own, so that mappings are shared with its processes.
    """
    if scene.rules.changes_on_host(host):
        _place_host(tree, path, host, source)
        return
    tree.place(path, SyntheticDirectory(), source)
    for name in sorted(os.listdir(host)):
        file = f"{host}/{name}"
        if scene.rules.changes_on_host(file) and stat.S_ISREG(os.lstat(file).st_mode):
            _place_host(tree, f"{path}/{name}", file, source)


def _place_names(tree: Tree, mounted: set[str]) -> None:
    """Put what the host says of names where the manifest mounts nothing of its own."""
    resolver = Path("/etc/resolv.conf")
    hostname = f"{host_name()}\n".encode()
    files = {
        "/etc/hostname": PseudoFile(lambda caller: hostname),
        "/etc/resolv.conf": PseudoFile(lambda caller: resolver_configuration(resolver)),
    }
    for path, node in files.items():
        if path not in mounted:
            tree.place(path, node, "sys.enable_extra_runtime_domain_names_conf")


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


class _DefaultRoot(NamedTuple):
    """What ``fs.root`` is where the manifest says nothing: the manifest's directory."""

    type: str = "chroot"
    uri: str | None = "file:."
    key_name: str | None = None


def key_of(mount: Mount | RootMount | _DefaultRoot) -> str:
    """Return the name of an encrypted mount's key."""
    return mount.key_name or DEFAULT_KEY


def _uri_path(uri: str) -> str:
    return normalise(uri.removeprefix(FILE).removeprefix("dir:") or ".")


def _clean(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _node_of(
    mount: Mount | RootMount | _DefaultRoot, scene: Scene, base: Path, source: str
) -> Node:
    """Return the node of a chroot or encrypted mount."""
    if mount.uri is None or mount.type not in ("chroot", "encrypted"):
        raise InputError(
            f"{source}: a mount of type {mount.type} cannot be served",
            hint="use chroot, encrypted or tmpfs",
        )
    path = _uri_path(mount.uri)
    host = os.path.realpath(os.path.join(base, path))
    key_name = key_of(mount) if mount.type == "encrypted" else None
    try:
        scene.pins.add_root(host)
        return host_node(scene, host, path, key_name)
    except FileNotFoundError as error:
        if key_name is not None and scene.encrypted is not None and Path(host).parent.is_dir():
            result = scene.encrypted(host, path, key_name)
            result.may_appear = True
            return result
        raise InputError(
            f"{source}: {mount.uri} does not exist (looked for {host})",
            hint="create it before the start, or correct the uri; relative ones start at "
            "the manifest's directory",
        ) from error


class _WithoutTerminals(SyntheticDirectory):
    """``/dev`` of a program without terminals; who looks for one is told why there is none."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._scene = scene

    def child(self, name: bytes) -> Node:
        """Find nothing."""
        if os.fsdecode(name) in _TERMINALS:
            missing = DeniedError(
                "the manifest has cloister.terminals = false",
                "cloister.terminals = true",
                errno.ENOENT,
            )
            self._scene.report(f"/dev/{os.fsdecode(name)}", Intent.READ, missing)
            raise missing
        return super().child(name)


def _place_pseudo_files(
    tree: Tree, scene: Scene, attestation: Directory, *, terminals: bool
) -> None:
    """Put ``/proc``, ``/dev`` and ``/sys`` over whatever the root holds there."""
    tree.mount_by_kernel(KernelMount("proc", "/proc"), stat.S_IFDIR, "/proc")
    tree.place_hidden(ABSENT_FILE, AbsentFile())
    tree.place_hidden(EMPTY_DIRECTORY, SyntheticDirectory())
    tree.place("/proc/sys", sysctl_directory(), "/proc/sys")
    dev = SyntheticDirectory() if terminals else _WithoutTerminals(scene)
    tree.place("/dev", dev, "/dev")
    for name in KERNEL_DEVICES:
        device = f"/dev/{name}"
        if Path(device).is_char_device() and (terminals or name not in _TERMINALS):
            tree.mount_by_kernel(KernelMount("bind", device, device), stat.S_IFREG | 0o666, device)
    tree.mount_by_kernel(KernelMount("tmpfs", "/dev/shm"), stat.S_IFDIR, "/dev/shm")  # noqa: S108
    if terminals:
        tree.mount_by_kernel(KernelMount("devpts", "/dev/pts"), stat.S_IFDIR, "/dev/pts")
        dev.mounted[b"ptmx"] = Symlink(b"pts/ptmx")
    for name, target in _LINKS_IN_DEV.items():
        dev.mounted[name.encode()] = Symlink(target.encode())
    dev.mounted[b"attestation"] = attestation
    tree.place("/sys", SyntheticDirectory(), "/sys")
    information = Scene(ReadOnlyRules(), scene.report, scene.uid, scene.gid, unbuffered=True)
    for directory, shown in SHOWN_OF_SYSFS.items():
        if Path(directory).is_dir():
            tree.place(directory, ListedDirectory(information, directory, shown), directory)
