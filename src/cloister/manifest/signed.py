"""The files of a signed application, loaded: what a run needs, and nothing that only a build does.

``APP`` names an application by its path without suffix, as in :mod:`cloister.manifest.build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import InputError, TrustedIndexError
from cloister.files import data_home
from cloister.manifest.index import TrustedIndex
from cloister.manifest.known import KnownManifest

if TYPE_CHECKING:
    from cloister.manifest.model import IndexReference, Manifest
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
        known: what an enclave has kept, or may keep, of the validated manifest.
        recalled: whether ``manifest`` comes from there, and still is to be confirmed.
    """

    manifest_bytes: bytes
    manifest: Manifest
    trusted: TrustedIndex
    sigstruct: bytes
    known: KnownManifest
    recalled: bool


def load_signed(app: Path, *, platform: str | None = None) -> SignedEnclave:
    """Load ``APP.manifest.sgx``, ``APP.sig`` and, where the manifest names one, ``APP.index``.

    Args:
        app: path without suffix.
        platform: take the validated manifest from its last start on this platform, if it is
            there.

    Raises:
        InputError: a file is missing, or the manifest is not one.
        TrustedIndexError: the index is not the signed one.
    """
    manifest_path = beside(app, ".manifest.sgx")
    data = _read_built(manifest_path, app)
    sigstruct = _read_built(beside(app, ".sig"), app)
    known = KnownManifest(data_home() / "manifests" / (platform or ""), data, sigstruct)
    recalled = None if platform is None else known.recall()
    if recalled is not None and recalled.cloister.trusted_index is not None:
        manifest = recalled
        trusted = _indexed(app, recalled.cloister.trusted_index)
    else:
        from cloister.manifest.parse import ManifestText

        text = ManifestText(data.decode("utf-8", "replace"), str(manifest_path))
        manifest, trusted = text.manifest, _trusted(app, text)
    return SignedEnclave(
        manifest_bytes=data,
        manifest=manifest,
        trusted=trusted,
        sigstruct=sigstruct,
        known=known,
        recalled=manifest is recalled,
    )


def _indexed(app: Path, reference: IndexReference) -> TrustedIndex:
    path = beside(app, ".index")
    try:
        return TrustedIndex.load(_read_built(path, app), bytes.fromhex(reference.sha256))
    except TrustedIndexError as error:
        raise TrustedIndexError(f"{path}: {error.message}") from error


def _trusted(app: Path, text: ManifestText) -> TrustedIndex:
    reference = text.manifest.cloister.trusted_index
    if reference is not None:
        return _indexed(app, reference)
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
