"""Graphene's keys, turned into Gramine's before a manifest is validated.

Each key is translated where it is found, so a manifest may be half converted; two spellings of the
same thing in one manifest are an error. Keys that mean nothing here are taken out and noted, with
why. Where the dialects have different defaults, the secure one holds (``sgx.debug``: false).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloister.errors import ManifestError
from cloister.manifest.locate import KeyPath
from cloister.manifest.uris import FILE

Document = dict[str, Any]
Problem = Callable[[KeyPath, str], ManifestError]

_RENAMED: dict[KeyPath, KeyPath] = {
    ("sgx", "thread_num"): ("sgx", "max_threads"),
    ("sgx", "rpc_thread_num"): ("sgx", "insecure__rpc_thread_num"),
    ("sgx", "support_exinfo"): ("sgx", "use_exinfo"),
    ("sgx", "protected_files_key"): ("fs", "insecure__keys", "default"),
    ("sgx", "insecure__protected_files_key"): ("fs", "insecure__keys", "default"),
}

_FEATURES = {"avx": "unspecified", "avx512": "unspecified", "mpx": "disabled", "pkru": "disabled"}
"""Feature -> what Graphene's ``sgx.require_FEATURE = false`` means."""

_WITHOUT_MEANING: dict[KeyPath, str] = {
    ("loader", "preload"): "the library OS is the runtime itself, and nothing is loaded before it",
    ("loader", "pal_internal_mem_size"): "the runtime takes memory as it needs it",
    ("pal", "entrypoint"): "there is no PAL; libos.entrypoint is executed",
    ("sgx", "nonpie_binary"): "programs at fixed addresses run without being told",
    ("sgx", "ra_client_spid"): "EPID attestation has ended; quotes are made for DCAP",
    ("sgx", "ra_client_linkable"): "EPID attestation has ended; quotes are made for DCAP",
}

_REFUSED: dict[KeyPath, str] = {
    ("loader", "exec"): "no longer supported; use libos.entrypoint",
    ("loader", "debug_type"): "no longer supported; use loader.log_level and loader.log_file",
    ("sgx", "sigfile"): "no longer supported; leave it out",
}


_TABLES: tuple[KeyPath, ...] = (
    ("loader", "argv0_override"),
    ("fs", "mount"),
    ("sgx", "trusted_checksum"),
)


def keys_of(table: KeyPath) -> list[str]:
    """Return the names of the keys that only Graphene has in ``table``."""
    features: list[KeyPath] = [("sgx", f"require_{feature}") for feature in _FEATURES]
    paths = (*_RENAMED, *_WITHOUT_MEANING, *_TABLES, *features)
    return [str(path[-1]) for path in paths if path[:-1] == table]


def translated_keys() -> list[tuple[str, str]]:
    """Return Graphene's keys, and what each becomes in Gramine's dialect; for documentation."""
    pairs = [(".".join(map(str, old)), ".".join(map(str, new))) for old, new in _RENAMED.items()]
    pairs += [(f"sgx.require_{name}", f"sgx.cpu_features.{name}") for name in _FEATURES]
    pairs += [("fs.mount.ID", "fs.mounts"), ("loader.argv0_override", "loader.argv")]
    lists = ("trusted_files", "allowed_files", "protected_files")
    pairs += [(f"sgx.{name}.ID", f"sgx.{name}") for name in lists]
    return [*pairs, ("sgx.trusted_checksum.ID", "sgx.trusted_files, with sha256")]


def meaningless_keys() -> list[tuple[str, str]]:
    """Return the keys of Graphene's that mean nothing here, and why; for documentation."""
    return [(".".join(map(str, key)), why) for key, why in _WITHOUT_MEANING.items()]


@dataclass
class Translation:
    """A manifest in Gramine's dialect.

    Attributes:
        document: the translated manifest.
        origins: where a translated value stood, for messages: new path -> old path.
        dropped: keys without meaning here -> why.
        graphene: whether a key of Graphene's was found.
    """

    document: Document
    origins: dict[KeyPath, KeyPath] = field(default_factory=dict)
    dropped: dict[KeyPath, str] = field(default_factory=dict)
    graphene: bool = False

    def origin(self, path: KeyPath) -> KeyPath:
        """Return the path under which the author knows ``path``."""
        for length in range(len(path), 0, -1):
            old = self.origins.get(path[:length])
            if old is not None:
                return (*old, *path[length:])
        return path


def translate(document: Document, problem: Problem) -> Translation:
    """Translate a parsed manifest; what is already Gramine's, or unknown, stays as it is.

    Args:
        document: the parsed TOML; it is not changed.
        problem: makes the errors.

    Raises:
        ManifestError: made by ``problem``: a key that even Graphene refuses, two spellings of the
            same thing, or a value of a wrong type where one has to be turned into another.
    """
    return _Translator(document, problem).result


class _Translator:
    def __init__(self, document: Document, problem: Problem) -> None:
        self.result = Translation(_copy(document))
        self._document = self.result.document
        self._problem = problem
        self._refuse()
        self._drop()
        for old, new in _RENAMED.items():
            self._move(old, new, lambda value: value)
        self._features()
        self._attestation()
        self._entrypoint()
        self._argv0()
        self._mounts()
        for name in ("trusted_files", "allowed_files", "protected_files"):
            self._file_table(name)
        if self._find(("sgx", "protected_files")) is not None:
            self.result.graphene = True

    # --- single keys ---------------------------------------------------------------------------

    def _refuse(self) -> None:
        for path, why in _REFUSED.items():
            if self._find(path) is not None:
                raise self._problem(path, why)

    def _drop(self) -> None:
        for path, why in _WITHOUT_MEANING.items():
            if self._find(path) is not None:
                self._take(path)
                self.result.dropped[path] = why
        if self._document.get("pal") == {}:
            del self._document["pal"]

    def _move(self, old: KeyPath, new: KeyPath, convert: Callable[[Any], Any]) -> None:
        if self._find(old) is None:
            return
        if self._find(new) is not None:
            raise self._problem(old, f"{'.'.join(map(str, new))} says the same; keep one of them")
        self._put(new, convert(self._take(old)))
        self.result.origins[new] = old

    def _features(self) -> None:
        for feature, unset in _FEATURES.items():
            old: KeyPath = ("sgx", f"require_{feature}")
            value = self._find(old)
            if value is not None and not isinstance(value, bool):
                raise self._problem(old, "expected true or false, without quotes")
            words = {True: "required", False: unset}
            self._move(old, ("sgx", "cpu_features", feature), words.__getitem__)

    def _attestation(self) -> None:
        path = ("sgx", "remote_attestation")
        value = self._find(path)
        if isinstance(value, bool):
            self._put(path, "dcap" if value else "none")
            self.result.graphene = True

    def _entrypoint(self) -> None:
        """Old manifests give the program as a URI of the host's."""
        path = ("libos", "entrypoint")
        value = self._find(path)
        if isinstance(value, str) and value.startswith(FILE):
            self._put(path, value[len(FILE) :])
            self.result.graphene = True

    def _argv0(self) -> None:
        old: KeyPath = ("loader", "argv0_override")
        value = self._find(old)
        if value is None:
            return
        if not isinstance(value, str):
            raise self._problem(old, "expected a text in quotes")
        if self._find(("loader", "insecure__use_cmdline_argv")) is True or self._find(
            ("loader", "argv_src_file")
        ):
            self._take(old)
            self.result.dropped[old] = "with arguments from outside, argv[0] comes with them"
            return
        self._move(old, ("loader", "argv"), lambda name: [name])

    # --- tables that became arrays -------------------------------------------------------------

    def _mounts(self) -> None:
        """``fs.mount.ID``: mounted by length of the path, so that none hides another."""
        old: KeyPath = ("fs", "mount")
        table = self._find(old)
        if table is None:
            return
        self._require_tables(old, table)
        for name, mount in table.items():
            for key in ("type", "path", "uri"):
                if not isinstance(mount.get(key), str):
                    raise self._problem((*old, name, key), "missing, or not a text in quotes")
        self._take(old)
        mounts = self._find(("fs", "mounts")) or []
        if not isinstance(mounts, list):
            return  # the model says what is wrong with it
        for name, mount in sorted(table.items(), key=lambda item: len(item[1]["path"])):
            new: KeyPath = ("fs", "mounts", len(mounts))
            self.result.origins[new] = (*old, name)
            mounts = [*mounts, mount]
        self._put(("fs", "mounts"), mounts)

    def _file_table(self, name: str) -> None:
        """``sgx.X_files.ID = "file:.."``, the hash of a trusted file in a table of its own."""
        path: KeyPath = ("sgx", name)
        checksums = self._take(("sgx", "trusted_checksum")) if name == "trusted_files" else None
        table = self._find(path)
        if not isinstance(table, dict):
            if checksums is not None:
                raise self._problem(("sgx", "trusted_checksum"), "there is no table trusted_files")
            return
        checksums = {} if checksums is None else checksums
        if not isinstance(checksums, dict) or not checksums.keys() <= table.keys():
            raise self._problem(("sgx", "trusted_checksum"), "has other names than trusted_files")
        files: list[Any] = []
        for key, uri in table.items():
            new: KeyPath = (*path, len(files))
            self.result.origins[new] = (*path, key)
            files.append({"uri": uri, "sha256": checksums[key]} if key in checksums else uri)
        self._put(path, files)
        self.result.graphene = True

    def _require_tables(self, path: KeyPath, table: Any) -> None:
        if not isinstance(table, dict):
            raise self._problem(path, "expected a table")
        for name, inner in table.items():
            if not isinstance(inner, dict):
                raise self._problem((*path, name), "expected a table")

    # --- the document --------------------------------------------------------------------------

    def _find(self, path: KeyPath) -> Any:
        value: Any = self._document
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
        return value

    def _take(self, path: KeyPath) -> Any:
        """Remove and return a value; None if it is not there. It is a key of Graphene's."""
        table = self._find(path[:-1])
        if not isinstance(table, dict) or path[-1] not in table:
            return None
        self.result.graphene = True
        return table.pop(path[-1])

    def _put(self, path: KeyPath, value: Any) -> None:
        table: Any = self._document
        for number, part in enumerate(path[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise self._problem(path[:number], "expected a table")
        table[path[-1]] = value


def _copy(value: Any) -> Any:
    """Copy tables; what is inside of arrays is never changed."""
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
