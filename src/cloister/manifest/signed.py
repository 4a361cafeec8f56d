"""The files of a signed application, loaded: what a run needs, and nothing that only a build does.

``APP`` names an application by its path without suffix, as in :mod:`cloister.manifest.build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.errors import InputError, TrustedIndexError
from cloister.manifest.index import TrustedIndex
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText

TEMPLATE_SUFFIX = ".manifest.template"


@dataclass(frozen=True)
class SignedEnclave:
    """The signed files of an application, loaded.

    Attributes:
        manifest_bytes: the signed manifest, as it is measured.
        manifest: the same, validated.
        trusted: digests of the trusted files.
        sigstruct: SIGSTRUCT, 1808 bytes; not verified here, the platform does that.
    """

    manifest_bytes: bytes
    manifest: Manifest
    trusted: TrustedIndex
    sigstruct: bytes


def load_signed(app: Path) -> SignedEnclave:
    """Load ``APP.manifest.sgx``, ``APP.sig`` and, where the manifest names one, ``APP.index``.

    Raises:
        InputError: a file is missing, or the manifest is not one.
        TrustedIndexError: the index is not the signed one.
    """
    manifest_path = beside(app, ".manifest.sgx")
    data = _read_built(manifest_path, app)
    text = ManifestText(data.decode("utf-8", "replace"), str(manifest_path))
    return SignedEnclave(
        manifest_bytes=data,
        manifest=text.manifest,
        trusted=_trusted(app, text),
        sigstruct=_read_built(beside(app, ".sig"), app),
    )


def _trusted(app: Path, text: ManifestText) -> TrustedIndex:
    reference = text.manifest.cloister.trusted_index
    if reference is not None:
        path = beside(app, ".index")
        try:
            return TrustedIndex.load(_read_built(path, app), bytes.fromhex(reference.sha256))
        except TrustedIndexError as error:
            raise TrustedIndexError(f"{path}: {error.message}") from error
    hashes: dict[str, bytes] = {}
    for line, file in enumerate(text.manifest.sgx.trusted_files):
        if file.sha256 is None:
            raise text.trusted_file_problem(
                line, f"{file.uri} has no sha256", "this manifest is not signed; build it"
            )
        hashes[file.path] = bytes.fromhex(file.sha256)
    return TrustedIndex.from_hashes(hashes)


def _read_built(path: Path, app: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: does not exist; APP is the name that stands before .manifest.sgx",
            hint=f"cloister build {app.name}{TEMPLATE_SUFFIX}",
        ) from error


def beside(app: Path, suffix: str) -> Path:
    """Return the path of the application's file with ``suffix``."""
    return app.with_name(app.name + suffix)
