"""A manifest of ours as what an installed Gramine needs to run the same program. Pure.

Our runtime does by itself what Gramine is told in the manifest: Gramine's patched C library is
mounted and searched first, its provisioning library is loaded before the program, and the files
by which host names are looked up are let in. What Gramine cannot do is refused with the reason.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloister.errors import InputError
from cloister.manifest.convert import Converted, to_gramine
from cloister.manifest.libraries import DEFAULT_DIRECTORIES
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.manifest.uris import DEVICE, FILE
from cloister.platforms.base import SealingPolicy
from cloister.provision.variables import LD_PRELOAD, LIBRARY, SERVERS, is_asked

SEARCH_PATH = "LD_LIBRARY_PATH"
DEFAULT_KEY = "default"
DEFAULT_SERVERS = "localhost:4433"
_PROVISIONING = "SECRET_PROVISION_"
_USUAL_PLACE = "/lib"
_OTHER_PLACE = "/gramine"
_NAME_FILES = ("/etc/hosts", "/etc/nsswitch.conf")
"""What the C library reads to look up a host; without them it does not know ``localhost``."""


@dataclass(frozen=True)
class Runtime:
    """What of an installed Gramine a manifest names; paths are absolute.

    Attributes:
        libos: its library OS.
        libos_sha256: the digest, 64 hexadecimal digits.
        directory: its patched C library, with its provisioning library.
        stand_in: the directory that our templates call ``gramine.runtimedir()``.
        version: its major and minor version.
        can_provision: whether :data:`~cloister.provision.variables.LIBRARY` is in ``directory``.
        beside_it: libraries that it needs and that are elsewhere.
    """

    libos: str
    libos_sha256: str
    directory: str
    stand_in: str
    version: tuple[int, int] = (1, 9)
    can_provision: bool = True
    beside_it: tuple[str, ...] = ()

    @property
    def entrypoint_has_hash(self) -> bool:
        """Whether ``loader.entrypoint`` is a table with the digest.

        Before, it is a URI, and the digest is among those of the trusted files.
        """
        return self.version >= (1, 8)


@dataclass(frozen=True)
class Host:
    """What has to be known of the host's files.

    Attributes:
        is_directory: tells whether a normalised URI path is a directory.
        is_file: tells whether an absolute path is a file.
    """

    is_directory: Callable[[str], bool]
    is_file: Callable[[str], bool]


def for_sgx(text: ManifestText, runtime: Runtime, host: Host) -> Converted:
    """Return the manifest for ``gramine-sgx``, still without hashes of the trusted files.

    Raises:
        ManifestError: something that Gramine cannot do: several key servers for several keys, or
            a library path that the host chooses.
        InputError: the program asks a key server, and this Gramine has no library for that.
    """
    result = _for_runtime(text, runtime, host)
    environment = _fixed(text.manifest)
    if is_asked(environment):
        if not runtime.can_provision:
            raise InputError(
                f"{runtime.directory}/{LIBRARY}: missing, but the program gets its key by it",
                hint="install a Gramine that was built with -Ddcap=enabled",
            )
        variables = _environment(result.document)
        others = [name for name in _preloaded(environment) if name.rpartition("/")[2] != LIBRARY]
        variables[LD_PRELOAD] = ":".join([LIBRARY, *others])
        _let_libraries_in(result.document, runtime)
        if _asks_by_name(environment.get(SERVERS, DEFAULT_SERVERS)):
            _let_names_in(result.document, text.manifest, host)
    return result


def for_direct(
    text: ManifestText, runtime: Runtime, host: Host, keys: Mapping[str, bytes]
) -> Converted:
    """Return the manifest for ``gramine-direct``, where there is no attestation: nobody is asked.

    Args:
        text: the manifest.
        runtime: the installed Gramine.
        host: the host's files.
        keys: wrap keys (16 bytes each) by name, which are written into the manifest.

    Raises:
        ManifestError: as :func:`for_sgx`; or a mount uses a sealing key, which needs SGX.
        InputError: a key that no encrypted mount uses.
    """
    result = _for_runtime(text, runtime, host)
    mounts = enumerate(text.manifest.fs.mounts)
    used = {m.key_name or DEFAULT_KEY: n for n, m in mounts if m.type == "encrypted"}
    root = text.manifest.fs.root
    if root is not None and root.type == "encrypted":
        used.setdefault(root.key_name or DEFAULT_KEY, -1)
    if text.manifest.sgx.protected_files:
        used.setdefault(DEFAULT_KEY, -1)
    for name in used.keys() & {f"_sgx_{policy.value}" for policy in SealingPolicy}:
        raise text.problem(
            ("fs", "mounts", used[name]),
            f"key_name = {name}: sealing keys are the processor's, and gramine-direct uses none",
            "run it with --platform gramine or simulated",
        )
    for name in keys.keys() - used.keys():
        raise InputError(f"key {name}: no encrypted mount uses it")
    fixed = {**text.manifest.fs.insecure__keys, **{n: k.hex() for n, k in keys.items()}}
    if fixed:
        result.document["fs"]["insecure__keys"] = fixed
    result.notes += [
        f"key {name} is not set: its files do not open; give it with --insecure-key {name}=FILE"
        for name in sorted(used.keys() - fixed.keys())
    ]
    _ask_nobody(result.document, text.manifest)
    # Gramine calls it a warning when a file is denied or damaged, and tells errors alone.
    result.document["loader"].setdefault("log_level", "warning")
    return result


def _for_runtime(text: ManifestText, runtime: Runtime, host: Host) -> Converted:
    result = to_gramine(text, host.is_directory)
    document = result.document
    place = _place_library(document, text.manifest, runtime)
    _name_libos(document, runtime)
    search_path = text.manifest.loader.env.get(SEARCH_PATH)
    if search_path is not None and search_path.passthrough:
        raise text.problem(
            ("loader", "env", SEARCH_PATH),
            "the host would choose the program's libraries, and Gramine's must come first",
            "give it a value",
        )
    wanted = (_fixed(text.manifest).get(SEARCH_PATH) or "").split(":")
    path = [place, *filter(None, wanted), *_library_directories(text.manifest)]
    _environment(document)[SEARCH_PATH] = ":".join(dict.fromkeys(path))
    # Else it swallows the signal by which service managers and containers stop programs.
    document.setdefault("sys", {}).setdefault("enable_sigterm_injection", True)
    result.notes += _leave_out(document, runtime.version)
    result.notes += _let_devices_in(document, runtime.version)
    return result


def _let_devices_in(document: dict[str, Any], version: tuple[int, int]) -> list[str]:
    """Allow the devices that are mounted, which 1.9 asks for; say which."""
    sgx = document["sgx"]
    allowed = sgx.get("allowed_files", [])
    mounted = [mount["uri"] for mount in document["fs"]["mounts"] if _is_device(mount)]
    missing = [uri for uri in dict.fromkeys(mounted) if uri not in allowed]
    if version < (1, 9) or not missing:
        return []
    sgx["allowed_files"] = [*allowed, *missing]
    return [f"{uri} is added to sgx.allowed_files, where Gramine wants devices" for uri in missing]


def _is_device(mount: Mapping[str, Any]) -> bool:
    return mount.get("type", "chroot") == "chroot" and str(mount["uri"]).startswith(f"{DEVICE}/")


def _leave_out(document: dict[str, Any], version: tuple[int, int]) -> list[str]:
    """Take out what this Gramine does not know, or takes for something worse; say what it was."""
    title = "Gramine {}.{}".format(*version)
    sys, notes = document["sys"], []
    if version >= (1, 7) and sys.pop("insecure__allow_eventfd", False):
        notes.append("sys.insecure__allow_eventfd is left out: eventfd works without the host's")
    for key in ("fds", "debug__mock_syscalls"):
        if version < (1, 8) and sys.pop(key, None):
            notes.append(f"sys.{key} is left out: {title} does not know it")
    mounts = document["fs"]["mounts"]
    if version < (1, 9) and any(mount.pop("enable_recovery", False) for mount in mounts):
        notes.append(f"enable_recovery is left out: {title} cannot recover files")
    return notes


def _name_libos(document: dict[str, Any], runtime: Runtime) -> None:
    """Say which library OS to load, in the words of the installed version."""
    uri = f"{FILE}{runtime.libos}"
    loader, sgx = document.setdefault("loader", {}), document["sgx"]
    others = [item for item in sgx["trusted_files"] if _uri(item) != uri]
    if runtime.entrypoint_has_hash:
        loader["entrypoint"] = {"uri": uri, "sha256": runtime.libos_sha256}
        sgx["trusted_files"] = others
    else:
        loader["entrypoint"] = uri
        sgx["trusted_files"] = [{"uri": uri, "sha256": runtime.libos_sha256}, *others]


def _place_library(document: dict[str, Any], manifest: Manifest, runtime: Runtime) -> str:
    """Mount and trust Gramine's C library; return where it is."""
    theirs, ours = f"{FILE}{runtime.directory}", f"{FILE}{runtime.stand_in}"
    place = None
    mounts = [dict(mount) for mount in document["fs"]["mounts"]]
    for mount in mounts:
        if str(mount.get("uri", "")).rstrip("/") in (theirs, ours):
            mount["uri"] = theirs
            place = posixpath.normpath(mount["path"])
    if place is None:
        place = _free_place(manifest)
        # First, so that what the program has below it is mounted over it.
        mounts = [{"path": place, "uri": theirs}, *mounts]
    document["fs"]["mounts"] = mounts
    sgx = document.setdefault("sgx", {})
    trusted = [
        item
        for item in sgx.get("trusted_files", [])
        if _uri(item).rstrip("/") not in (theirs, ours) and not _uri(item).startswith(f"{ours}/")
    ]
    sgx["trusted_files"] = [f"{theirs}/", *trusted]
    return place


def _free_place(manifest: Manifest) -> str:
    """Return ``/lib``, unless the program has something of its own there."""
    root = manifest.fs.root
    taken = root is not None and root.type != "tmpfs"
    taken = taken or any(mount.path == _USUAL_PLACE for mount in manifest.fs.mounts)
    return _OTHER_PLACE if taken else _USUAL_PLACE


def _library_directories(manifest: Manifest) -> list[str]:
    """Return where the program's own libraries are: Gramine's linker knows no default places."""
    mounts = [mount.path for mount in manifest.fs.mounts]
    root = manifest.fs.root
    shown = [
        directory
        for directory in DEFAULT_DIRECTORIES
        if (root is not None and root.type != "tmpfs")
        or any(_meet(directory, path) for path in mounts)
    ]
    for path in mounts:
        if ".so" in posixpath.basename(path) and not path.startswith("/etc/"):
            shown.append(posixpath.dirname(path))
    for uri in (item.path for item in manifest.sgx.trusted_files):
        if posixpath.dirname(uri) in mounts and re.search(r"\.so(\.[0-9.]+)?$", uri):
            shown.append(posixpath.dirname(uri))  # mounted at its own path
    return list(dict.fromkeys(shown))


def _meet(directory: str, mount: str) -> bool:
    """Tell whether a mount shows something of a directory."""
    return f"{directory}/".startswith(f"{mount}/") or f"{mount}/".startswith(f"{directory}/")


def _let_libraries_in(document: dict[str, Any], runtime: Runtime) -> None:
    """Show and trust the libraries of the provisioning library beside it."""
    place = _environment(document)[SEARCH_PATH].partition(":")[0]
    for path in runtime.beside_it:
        mount = {"path": posixpath.join(place, posixpath.basename(path)), "uri": FILE + path}
        document["fs"]["mounts"] = [*document["fs"]["mounts"], mount]
        document["sgx"]["trusted_files"] = [*document["sgx"]["trusted_files"], FILE + path]


def _asks_by_name(servers: str) -> bool:
    hosts = [item.partition(":")[0] for item in re.split(r"[,; ]+", servers) if item]
    return not all(_is_address(host) for host in hosts)


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _let_names_in(document: dict[str, Any], manifest: Manifest, host: Host) -> None:
    """Let the host's name files in. They decide whom the enclave calls, not whom it believes."""
    document.setdefault("sys", {})["enable_extra_runtime_domain_names_conf"] = True
    mounted = {mount.path for mount in manifest.fs.mounts}
    trusted = [item.path for item in manifest.sgx.trusted_files]
    sgx = document["sgx"]
    allowed = [*sgx.get("allowed_files", [])]
    for path in _NAME_FILES:
        if path in mounted or not host.is_file(path):
            continue
        document["fs"]["mounts"] = [*document["fs"]["mounts"], {"path": path, "uri": FILE + path}]
        # Allowed would win over trusted, so what is trusted stays so.
        if FILE + path not in allowed and not any(_meet(path, name) for name in trusted):
            allowed.append(FILE + path)
    if allowed:
        sgx["allowed_files"] = allowed


def _ask_nobody(document: dict[str, Any], manifest: Manifest) -> None:
    """Take out what would ask a key server, which ends a process that cannot make a quote."""
    variables = _environment(document)
    for name in [name for name in variables if name.startswith(_PROVISIONING)]:
        del variables[name]
    preloaded = _preloaded(_fixed(manifest))
    others = [name for name in preloaded if name.rpartition("/")[2] != LIBRARY]
    if others != preloaded:
        variables[LD_PRELOAD] = ":".join(others)
        if not others:
            del variables[LD_PRELOAD]


def _environment(document: dict[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = document.setdefault("loader", {}).setdefault("env", {})
    return variables


def _fixed(manifest: Manifest) -> dict[str, str]:
    """Return the variables to which the manifest itself gives values."""
    variables = manifest.loader.env.items()
    return {name: item.value for name, item in variables if item.value is not None}


def _preloaded(environment: Mapping[str, str]) -> list[str]:
    return [name for name in re.split(r"[ :]+", environment.get(LD_PRELOAD, "")) if name]


def _uri(item: Any) -> str:
    return str(item["uri"] if isinstance(item, dict) else item)
