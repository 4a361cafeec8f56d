"""Arguments and environment of the application: the manifest's rules, no I/O.

Source: Gramine's manifest syntax, "Command-line arguments" and "Environment variables".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest

ReadFile = Callable[[str], bytes]


def arguments(manifest: Manifest, given: Sequence[str], read: ReadFile) -> list[str]:
    """Return the program's whole argument vector.

    Args:
        manifest: the manifest; at most one of ``loader.argv``, ``loader.argv_src_file`` and
            ``loader.insecure__use_cmdline_argv`` is set in it.
        given: arguments from the command line, which is the host's.
        read: reads the file that a ``file:`` URI names, with the manifest's own checks.

    Raises:
        InputError: arguments were given but the manifest does not let them in, or a file of
            arguments does not end with NUL.
    """
    loader = manifest.loader
    if loader.insecure__use_cmdline_argv:
        return [manifest.libos.entrypoint, *given]
    require_that_they_count(manifest, given)
    if loader.argv_src_file:
        found = _strings(loader.argv_src_file, read(loader.argv_src_file))
        if not found:
            raise InputError(
                f"{loader.argv_src_file}: is empty; a program needs at least its own name"
            )
        return found
    return list(loader.argv) if loader.argv else [manifest.libos.entrypoint]


def require_that_they_count(manifest: Manifest, given: Sequence[str]) -> None:
    """Refuse arguments of the command line where the manifest would have them dropped.

    Raises:
        InputError: there are some.
    """
    loader = manifest.loader
    if not given or loader.insecure__use_cmdline_argv:
        return
    if not (loader.argv or loader.argv_src_file):
        raise InputError(
            f"argument {given[0]!r}: the manifest lets no command-line arguments in",
            hint="set loader.argv in the manifest, or loader.insecure__use_cmdline_argv = true "
            "(the host then chooses the arguments)",
        )
    key = "loader.argv" if loader.argv else "loader.argv_src_file"
    raise InputError(
        f"argument {given[0]!r}: the manifest fixes the arguments",
        hint=f"leave the arguments out, or remove {key} from the manifest",
    )


def declared(manifest: Manifest, host: Mapping[str, str]) -> dict[str, str]:
    """Return what ``loader.env`` sets: fixed values, and host values that it passes through."""
    variables = manifest.loader.env
    passed = {name: host[name] for name, v in variables.items() if v.passthrough and name in host}
    fixed = {name: v.value for name, v in variables.items() if v.value is not None}
    return passed | fixed


def environment(manifest: Manifest, host: Mapping[str, str], read: ReadFile) -> dict[str, str]:
    """Return the program's environment.

    Nothing comes from the host unless the manifest says so by name (``passthrough``) or wholesale
    (``loader.insecure__use_host_env``); what ``loader.env`` names wins over both.

    Raises:
        InputError: a file of variables is malformed.
    """
    loader = manifest.loader
    base: Mapping[str, str] = {}
    if loader.insecure__use_host_env:
        base = host
    elif loader.env_src_file:
        base = _variables(loader.env_src_file, read(loader.env_src_file))
    kept = {name: value for name, value in base.items() if name not in loader.env}
    return kept | declared(manifest, host)


def _strings(uri: str, content: bytes) -> list[str]:
    """Split a file of NUL-terminated strings."""
    if not content:
        return []
    if not content.endswith(b"\0"):
        raise InputError(
            f"{uri}: does not end with NUL; expected NUL-terminated strings",
            hint=f"printf '%s\\0' FIRST SECOND > {uri.removeprefix('file:')}",
        )
    return [item.decode("utf-8", "surrogateescape") for item in content[:-1].split(b"\0")]


def _variables(uri: str, content: bytes) -> dict[str, str]:
    variables = {}
    for item in _strings(uri, content):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InputError(f"{uri}: {item!r} is not of the form NAME=VALUE")
        variables[name] = value
    return variables
