"""The ELF interpreter of the program, where the kernel looks for it.

A library OS loads programs itself and finds the interpreter in its own ``/lib``, so old manifests
mount nothing at the path that programs name (``/lib64/ld-linux-x86-64.so.2``). The kernel looks
there. So the interpreter of the same name is shown there too, with the checks of the place that it
comes from: what the manifest does not grant is not granted by this.
"""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

from cloister.errors import InputError
from cloister.fuse.filesystem import Caller
from cloister.runtime.host import HostFile
from cloister.runtime.nodes import Node
from cloister.runtime.policy import DeniedError, Intent
from cloister.sgx.elf import interpreter_of

if TYPE_CHECKING:
    from cloister.runtime.tree import Tree

_SHEBANG_LINE = 256
_DEEPEST_SHEBANG = 4  # as in the kernel
_DIRECTORIES = ("/lib", "/usr/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")


def place_interpreter(tree: Tree, program: str, directory: str) -> None:
    """Show the interpreter of ``program`` where the kernel looks for it, if it is not there.

    Where one is there that the manifest does not grant, one that it grants comes before it.

    Args:
        tree: the file tree.
        program: path of an ELF file, or of a script that begins with ``#!``.
        directory: where relative paths begin.

    Raises:
        InputError: the interpreter is nowhere in the tree, so that the program cannot start.
    """
    wanted = _wanted(tree, program, directory)
    if wanted is None or not wanted.startswith("/"):
        return
    there = _find(tree, wanted)
    if there is not None and _is_granted(there):
        return
    name = posixpath.basename(wanted)
    places = (_find(tree, posixpath.join(place, name)) for place in _DIRECTORIES)
    others = [node for node in places if node is not None]
    granted = next(filter(_is_granted, others), None)
    if granted is not None:
        tree.place(wanted, granted, f"the ELF interpreter of {program}")
        return
    if there is not None:
        return  # that it is denied is told when the kernel opens it
    if others:
        tree.place(wanted, others[0], f"the ELF interpreter of {program}")
        return
    raise InputError(
        f"{program} needs {wanted} to start (its ELF interpreter), which is not in the file tree",
        hint=f'mount it, {{ path = "{wanted}", uri = "file:{wanted}" }}, and trust it with the '
        f"other libraries: {{% for l in ldd('PROGRAM') %}} in the template lists them all",
    )


def _is_granted(node: Node) -> bool:
    """Tell whether the rules let a program read a file; nobody is told if they do not."""
    if not isinstance(node, HostFile):
        return True
    try:
        node.scene.rules.check(node.place.path, Intent.READ)
    except DeniedError:
        return False
    return True


def _wanted(tree: Tree, program: str, directory: str, depth: int = 0) -> str | None:
    """Return what the program names; None where it cannot be told, which its start will explain."""
    node = _find(tree, posixpath.join(directory, program))
    if node is None or depth > _DEEPEST_SHEBANG:
        return None
    try:
        handle = node.open(os.O_RDONLY, Caller(os.getuid(), os.getgid(), os.getpid()))
    except OSError:
        return None

    def read(offset: int, size: int) -> bytes:
        return bytes(handle.read(offset, size))

    try:
        line = read(0, _SHEBANG_LINE).partition(b"\n")[0]
        words = line[2:].split()
        if line.startswith(b"#!") and words:
            return _wanted(tree, os.fsdecode(words[0]), directory, depth + 1)
        return interpreter_of(read)
    except OSError:
        return None
    finally:
        handle.release()


def _find(tree: Tree, path: str) -> Node | None:
    try:
        return tree.find(path)
    except OSError:
        return None
