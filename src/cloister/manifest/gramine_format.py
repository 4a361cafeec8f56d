"""The final manifest as stock Gramine 1.9 wants it: all defaults and all files written out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cloister.errors import ManifestError
from cloister.manifest.convert import to_gramine
from cloister.manifest.index import TrustedEntry
from cloister.manifest.model import Manifest, TrustedFile
from cloister.manifest.parse import ManifestText
from cloister.manifest.template import Installation

# The keys that Gramine's tools write in any case, in the order in which they add those that are
# missing; what the author wrote stays at its place. MRENCLAVE depends on it.
_ALWAYS = (
    "trusted_files",
    "max_threads",
    "isvprodid",
    "isvsvn",
    "remote_attestation",
    "debug",
    "enable_stats",
    "edmm_enable",
    "enclave_size",
    "use_exinfo",
    "cpu_features",
)


def gramine_document(
    text: ManifestText,
    entries: Mapping[str, TrustedEntry],
    lines: Mapping[str, int],
    base: Path,
    *,
    entrypoint_is_uri: bool = False,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the final manifest as a document, and notes for its builder.

    Args:
        text: the manifest, in either dialect.
        entries: digests of the trusted files, by normalised URI path.
        lines: number of the list item that names each of them, from 0.
        base: directory of the manifest.
        entrypoint_is_uri: write the library OS without a digest, as Gramine before 1.8 reads it.

    Raises:
        ManifestError: a trusted file's name is not UTF-8, which TOML cannot say.
    """
    converted = to_gramine(text, lambda path: (base / path).is_dir())
    document, notes = converted.document, list(converted.notes)
    loader = document.setdefault("loader", {})
    library = _library_os(text.manifest, notes)
    loader["entrypoint"] = library["uri"] if entrypoint_is_uri else library
    listed = text.manifest.sgx.trusted_files
    document["sgx"] = _enclave(document.get("sgx", {}), text.manifest) | {
        "trusted_files": [
            {"uri": _uri(listed[lines[path]], path), "sha256": entry.sha256.hex()}
            for path, entry in entries.items()
        ]
    }
    return document, tuple(notes)


def _uri(item: TrustedFile, path: str) -> str:
    """Return a file's URI: as it was written, or below the directory as that was written."""
    uri = item.uri
    if path != item.path:
        below = path if item.path == "." else path[len(item.path.rstrip("/")) + 1 :]
        uri = f"file:{PurePosixPath(item.uri.removeprefix('file:')) / below}"
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"trusted file {path!r}: its name is not UTF-8, so Gramine's manifest cannot list it",
            hint="rename the file, or leave --format gramine out",
        ) from error
    return uri


def _enclave(sgx: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return the table ``sgx`` with everything that Gramine's tools write in any case."""
    written = dict(sgx)
    for key in _ALWAYS:
        written.setdefault(key, getattr(manifest.sgx, key))
    written["enclave_size"] = _size(sgx.get("enclave_size"), manifest)
    features = manifest.sgx.cpu_features.model_dump()
    written["cpu_features"] = {**sgx.get("cpu_features", {}), **features}
    return written


def _size(written: str | None, manifest: Manifest) -> str:
    """Return the size as it was written, or in bytes where Gramine's signer would not read it."""
    if written is None:
        return "1024G" if manifest.sgx.edmm_enable else "256M"
    return written if re.fullmatch(r"[0-9]+[KMG]?", written) else str(manifest.sgx.enclave_size)


def _library_os(manifest: Manifest, notes: list[str]) -> dict[str, str]:
    """Return Gramine's library OS with its hash, which its loader checks."""
    given = manifest.loader.entrypoint
    uri = f"file:{Installation().libos}" if given is None else given.uri
    if given is not None and given.sha256 is not None:
        return {"uri": uri, "sha256": given.sha256}
    library = Path(uri.removeprefix("file:"))
    if library.is_file():
        return {"uri": uri, "sha256": hashlib.sha256(library.read_bytes()).hexdigest()}
    notes.append(
        f"loader.entrypoint has no sha256, because {library} is not on this machine;"
        " sign with gramine-sgx-sign where Gramine is installed, which adds it"
    )
    return {"uri": uri}
