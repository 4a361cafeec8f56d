"""The final manifest as stock Gramine 1.9 wants it: all defaults and all files written out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.errors import ManifestError
from cloister.manifest.convert import to_gramine
from cloister.manifest.index import TrustedEntry
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.manifest.template import Installation


def gramine_document(
    text: ManifestText, entries: Mapping[str, TrustedEntry], base: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the final manifest as a document, and notes for its builder.

    Args:
        text: the manifest, in either dialect.
        entries: digests of the trusted files, by normalised URI path.
        base: directory of the manifest.

    Raises:
        ManifestError: a trusted file's name is not UTF-8, which TOML cannot say.
    """
    converted = to_gramine(text, lambda path: (base / path).is_dir())
    document, notes = converted.document, list(converted.notes)
    loader = document["loader"] = {**document.get("loader", {})}
    loader["entrypoint"] = _library_os(text.manifest, notes)
    document["sgx"] = {
        **_defaults(text.manifest),
        **document.get("sgx", {}),
        "enclave_size": _size(document.get("sgx", {}), text.manifest),
        "trusted_files": [_listed(path, entry) for path, entry in entries.items()],
    }
    document["sgx"]["cpu_features"] = text.manifest.sgx.cpu_features.model_dump()
    return document, tuple(notes)


def _listed(path: str, entry: TrustedEntry) -> dict[str, str]:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"trusted file {path!r}: its name is not UTF-8, so Gramine's manifest cannot list it",
            hint="rename the file, or leave --format gramine out",
        ) from error
    return {"uri": f"file:{path}", "sha256": entry.sha256.hex()}


def _size(sgx: Mapping[str, Any], manifest: Manifest) -> str:
    """Return the size as it was written, or in bytes where Gramine's signer would not read it."""
    written = str(sgx.get("enclave_size", ""))
    return written if re.fullmatch(r"[0-9]+[KMG]?", written) else str(manifest.sgx.enclave_size)


def _defaults(manifest: Manifest) -> dict[str, Any]:
    """Return the keys that Gramine's loader needs or its signer writes in any case."""
    sgx = manifest.sgx
    return {
        "debug": sgx.debug,
        "edmm_enable": sgx.edmm_enable,
        "max_threads": sgx.max_threads,
        "isvprodid": sgx.isvprodid,
        "isvsvn": sgx.isvsvn,
        "remote_attestation": sgx.remote_attestation,
        "enable_stats": sgx.enable_stats,
        "use_exinfo": sgx.use_exinfo,
    }


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
