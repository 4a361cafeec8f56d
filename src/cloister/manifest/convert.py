"""One dialect written in the other. What cannot be said there is an error, never dropped silently.

The input is parsed first, so it is known to be sound; the output is a plain document to be written
as TOML. What a conversion changes although the words allow it, it says in ``notes``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from cloister.manifest.locate import KeyPath
from cloister.manifest.model import Manifest, Mount, RootMount
from cloister.manifest.parse import ManifestText
from cloister.manifest.uris import FILE, normalise
from cloister.manifest.visibility import inside_paths
from cloister.provision.variables import YES

IsDirectory = Callable[[str], bool]

_PF_KEY = "SECRET_PROVISION_SET_PF_KEY"
_KEY = "SECRET_PROVISION_SET_KEY"
_DEFAULT = "default"


@dataclass
class Converted:
    """A manifest in the other dialect, and what its author should know."""

    document: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def to_gramine(text: ManifestText, is_directory: IsDirectory) -> Converted:
    """Write a manifest for Gramine's tools and runtime.

    Args:
        text: the manifest, in either dialect.
        is_directory: tells whether a normalised URI path is a directory on this machine.

    Raises:
        ManifestError: it is already signed with an index, which Gramine does not know, or keys
            have servers of their own, for which Gramine has no words.
    """
    _refuse_keys(text)
    if text.manifest.cloister.trusted_index is not None:
        raise text.problem(
            ("cloister", "trusted_index"),
            "the list of trusted files is in an index, which only Cloister reads",
            "build it again: cloister build --format gramine",
        )
    result = Converted(_deep(text.document))
    document = result.document
    document.pop("cloister", None)
    document.setdefault("fs", {}).setdefault("mounts", [])
    _protected_to_encrypted(text.manifest, document)
    _provisioning(document, _PF_KEY, _KEY, "true", _DEFAULT)
    if text.graphene:
        _slashes(document, is_directory)
        if "debug" not in document.get("sgx", {}):
            document.setdefault("sgx", {})["debug"] = False
            result.notes.append("sgx.debug is off now; Graphene's default was on")
    result.notes += _dropped(text)
    result.document = _renamed(document, "graphene", "gramine")
    return result


def _refuse_keys(text: ManifestText) -> None:
    if text.manifest.cloister.keys:
        raise text.problem(
            ("cloister", "keys"),
            "Graphene and Gramine ask one key server for one key before the program starts",
            "name one key server: loader.env.SECRET_PROVISION_SERVERS",
        )


def _protected_to_encrypted(manifest: Manifest, document: dict[str, Any]) -> None:
    """Graphene marks host files wherever they are mounted; Gramine mounts them as encrypted."""
    document.get("sgx", {}).pop("protected_files", None)
    fs = manifest.fs
    already = {(mount.path, mount.uri) for mount in fs.mounts if mount.type == "encrypted"}
    if fs.root is not None and fs.root.type == "encrypted":
        already.add(("/", fs.root.uri))
    for uri in manifest.sgx.protected_files:
        for inside in inside_paths(manifest, normalise(uri.removeprefix(FILE))):
            if (inside, uri) in already:
                continue
            if inside == "/":
                document["fs"]["root"] = {"type": "encrypted", "uri": uri}
            else:
                mount = {"type": "encrypted", "path": inside, "uri": uri}
                _mount_over(document["fs"]["mounts"], mount)


def _mount_over(mounts: list[dict[str, Any]], mount: dict[str, Any]) -> None:
    """Mount over what shows this path, but not over what is mounted deeper after that."""
    path = mount["path"]
    places = [posixpath.normpath(other["path"]) for other in mounts]
    shows = max((at for at, other in enumerate(places) if _is_below(path, other)), default=-1)
    deeper = (at for at, other in enumerate(places) if at > shows and _is_below(other, path))
    mounts.insert(next(deeper, len(mounts)), mount)


def _is_below(path: str, directory: str) -> bool:
    return posixpath.commonpath((path, directory)) == directory


def _slashes(document: dict[str, Any], is_directory: IsDirectory) -> None:
    """Gramine wants a slash at the end of a trusted directory."""
    sgx = document.get("sgx", {})
    files = sgx.get("trusted_files", [])
    sgx_files = [
        f"{item}/"
        if isinstance(item, str)
        and not item.endswith("/")
        and is_directory(normalise(item.removeprefix(FILE)))
        else item
        for item in files
    ]
    if files:
        sgx["trusted_files"] = sgx_files


# --- to Graphene ---------------------------------------------------------------------------------

_NEW_KEYS: dict[tuple[str, str], str] = {
    ("sgx", "edmm_enable"): "Graphene adds no memory to a running enclave",
    ("sgx", "seal_key"): "Graphene has no sealing keys",
    ("loader", "uid"): "in Graphene everybody is root",
    ("loader", "gid"): "in Graphene everybody is root",
    ("sys", "disallow_subprocesses"): "Graphene always lets programs start processes",
    ("sys", "allowed_ioctls"): "Graphene passes no ioctl through",
    ("sys", "ioctl_structs"): "Graphene passes no ioctl through",
    ("sys", "debug__mock_syscalls"): "Graphene replaces no system calls",
}
_HARMLESS_NEW_KEYS: tuple[tuple[str, str], ...] = (
    ("loader", "entrypoint"),
    ("sys", "fds"),
    ("sys", "experimental__enable_flock"),
    ("sys", "enable_extra_runtime_domain_names_conf"),
    ("sgx", "insecure__allow_memfaults_without_exinfo"),
    ("sgx", "vtune_profile"),
)
_OLD_NAMES = {
    "max_threads": "thread_num",
    "insecure__rpc_thread_num": "rpc_thread_num",
    "use_exinfo": "support_exinfo",
}


def to_graphene(text: ManifestText) -> Converted:
    """Write a manifest template for Graphene.

    Raises:
        ManifestError: it says something for which Graphene has no words.
    """
    _refuse_keys(text)
    if text.manifest.cloister.trusted_index is not None:
        raise text.problem(
            ("cloister", "trusted_index"),
            "the list of trusted files is in an index, which only Cloister reads",
            "convert the manifest from which it was built",
        )
    return _ToGraphene(text).result


class _ToGraphene:
    def __init__(self, text: ManifestText) -> None:
        self._text = text
        self._manifest = text.manifest
        document = _deep(text.document)
        document.pop("cloister", None)
        self.result = Converted(document)
        self._loader = document.setdefault("loader", {})
        self._fs = document.setdefault("fs", {})
        self._sgx = document.setdefault("sgx", {})
        self._refuse_or_drop()
        self._arguments()
        self._environment()
        self._keys()
        self._mounts()
        self._enclave()
        self.result.notes += _dropped(text, written=(("loader", "preload"),))
        self._loader["preload"] = "file:{{ graphene.libos }}"
        _provisioning(document, _KEY, _PF_KEY, _DEFAULT, "true")
        self.result.document = _renamed(document, "gramine", "graphene")

    def _refuse_or_drop(self) -> None:
        document = self.result.document
        for (table, key), why in _NEW_KEYS.items():
            if document.get(table, {}).get(key):
                raise self._text.problem((table, key), why, "take it out to convert the rest")
        for table, key in (*_NEW_KEYS, *_HARMLESS_NEW_KEYS):
            if key in document.get(table, {}):
                del document[table][key]
                self.result.notes.append(f"{table}.{key} was left out: Graphene does not know it")

    def _arguments(self) -> None:
        argv = self._loader.pop("argv", None)
        if argv is None:
            if not ({"insecure__use_cmdline_argv", "argv_src_file"} & self._loader.keys()):
                self._loader["argv0_override"] = self._manifest.libos.entrypoint
            return
        if len(argv) > 1:
            raise self._text.problem(
                ("loader", "argv"),
                "Graphene takes arguments from a file only",
                "graphene-argv-serializer ARGUMENTS > args, then"
                ' loader.argv_src_file = "file:args" with the file trusted',
            )
        self._loader["argv0_override"] = argv[0]

    def _environment(self) -> None:
        variables = self._manifest.loader.env
        for name, variable in variables.items():
            if variable.passthrough:
                raise self._text.problem(
                    ("loader", "env", name), "Graphene passes no single variable through"
                )
        if variables:
            self._loader["env"] = {name: value.value for name, value in variables.items()}

    def _keys(self) -> None:
        keys = self._fs.pop("insecure__keys", {})
        for name in keys:
            if name != _DEFAULT:
                raise self._text.problem(
                    ("fs", "insecure__keys", name), "Graphene has one key, and it has no name"
                )
        if keys:
            self._sgx["protected_files_key"] = keys[_DEFAULT]

    def _mounts(self) -> None:
        root = self._manifest.fs.root
        if root is not None:
            self._fs["root"] = self._old_mount(("fs", "root"), root, "/")
        mounts = self._manifest.fs.mounts
        self._fs.pop("mounts", None)
        for number, mount in enumerate(mounts):
            self._require_order(number, mounts)
            names = self._fs.setdefault("mount", {})
            old = self._old_mount(("fs", "mounts", number), mount, mount.path)
            names[_name(mount.path, names)] = {"path": mount.path, **old}

    def _require_order(self, number: int, mounts: list[Mount]) -> None:
        """Graphene mounts short paths first, so a later short one cannot hide a longer one."""
        path = f"{mounts[number].path}/"
        if any(earlier.path.startswith(path) for earlier in mounts[:number]):
            raise self._text.problem(
                ("fs", "mounts", number), "hides an earlier mount, which Graphene cannot do"
            )

    def _old_mount(self, at: KeyPath, mount: Mount | RootMount, path: str) -> dict[str, Any]:
        if mount.type == "untrusted_shm":
            raise self._text.problem(at, "Graphene has no shared memory with the host")
        if mount.type != "encrypted":
            return {"type": mount.type, "uri": mount.uri or f"{FILE}none"}
        if mount.key_name not in (None, _DEFAULT):
            raise self._text.problem(at, "Graphene has one key, and it has no name")
        if mount.enable_recovery:
            raise self._text.problem(at, "Graphene has no recovery of interrupted writes")
        self._sgx["protected_files"] = [*self._sgx.get("protected_files", []), mount.uri]
        return {"type": "chroot", "uri": mount.uri}

    def _enclave(self) -> None:
        sgx = self._manifest.sgx
        self._sgx["debug"] = sgx.debug  # Graphene's default is on
        for new, old in _OLD_NAMES.items():
            if new in self._sgx:
                self._sgx[old] = self._sgx.pop(new)
        if "remote_attestation" in self._sgx:
            self._sgx["remote_attestation"] = sgx.remote_attestation == "dcap"
        for feature, demand in self._sgx.pop("cpu_features", {}).items():
            if feature == "amx" and demand == "required":
                raise self._text.problem(
                    ("sgx", "cpu_features", "amx"), "Graphene does not know AMX"
                )
            if feature in ("avx", "avx512") and demand == "disabled":
                raise self._text.problem(
                    ("sgx", "cpu_features", feature),
                    "Graphene cannot keep a feature off",
                    "take it out to convert the rest",
                )
            if demand == "required":
                self._sgx[f"require_{feature}"] = True


def _name(path: str, taken: dict[str, Any]) -> str:
    """Make a table name of a path."""
    base = re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_") or "mount"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


# --- both ----------------------------------------------------------------------------------------


def _dropped(text: ManifestText, written: Collection[KeyPath] = ()) -> list[str]:
    return [
        f"{_dotted(path)} was left out: {why}"
        for path, why in text.dropped.items()
        if path not in written
    ]


def _provisioning(
    document: dict[str, Any], old: str, new: str, old_value: str, new_value: str
) -> None:
    """The variable that makes the provisioned secret a wrap key has another name."""
    env = document.get("loader", {}).get("env", {})
    value = env.get(old)
    value = value.get("value") if isinstance(value, dict) else value
    if value in YES if old_value == "true" else value == old_value:
        document["loader"]["env"] = {
            (new if name == old else name): (new_value if name == old else value)
            for name, value in env.items()
        }


def _renamed(value: Any, old: str, new: str) -> Any:
    """Rename the template object in texts such as ``{{ graphene.libos }}``."""
    if isinstance(value, str):
        return re.sub(rf"(\{{\{{[^}}]*)\b{old}\.", rf"\1{new}.", value)
    if isinstance(value, dict):
        return {key: _renamed(inner, old, new) for key, inner in value.items()}
    return [_renamed(inner, old, new) for inner in value] if isinstance(value, list) else value


def _deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep(inner) for key, inner in value.items()}
    return [_deep(inner) for inner in value] if isinstance(value, list) else value


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
