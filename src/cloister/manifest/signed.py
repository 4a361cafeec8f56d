"""The files of a signed application, loaded: what a run needs, and nothing that only a build does.

``APP`` names an application by its path without suffix, as in :mod:`cloister.manifest.build`.
"""

from __future__ import annotations

import functools
import hashlib
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
        app: path without suffix.
        manifest_bytes: the signed manifest, as it is measured.
        manifest: the same, validated.
        sigstruct: SIGSTRUCT, 1808 bytes; not verified here, the platform does that.
        known: what an enclave has kept, or may keep, of the validated manifest.
        recalled: whether ``manifest`` comes from there, and still is to be confirmed.
    """

    app: Path
    manifest_bytes: bytes
    manifest: Manifest
    sigstruct: bytes
    known: KnownManifest
    recalled: bool

    @property
    def digest(self) -> bytes:
        """SHA-256 of signature and manifest, by which two who loaded them know they are equal."""
        return hashlib.sha256(self.sigstruct + self.manifest_bytes).digest()

    @functools.cached_property
    def trusted(self) -> TrustedIndex:
        """Digests of the trusted files; the index is loaded when it is first asked for.

        Raises:
            InputError: ``APP.index`` is missing, or the manifest is not signed.
            TrustedIndexError: the index is not the signed one.
        """
        reference = self.manifest.cloister.trusted_index
        if reference is not None:
            return _indexed(self.app, reference)
        hashes: dict[str, bytes] = {}
        for line, file in enumerate(self.manifest.sgx.trusted_files):
            if file.sha256 is None:
                raise _text(self.app, self.manifest_bytes).trusted_file_problem(
                    line, f"{file.uri} has no sha256", "this manifest is not signed; build it"
                )
            hashes[file.path] = bytes.fromhex(file.sha256)
        return TrustedIndex.from_hashes(hashes)


def load_signed(app: Path, *, platform: str | None = None) -> SignedEnclave:
    """Load ``APP.manifest.sgx`` and ``APP.sig``.

    Args:
        app: path without suffix.
        platform: take the validated manifest from its last start on this platform, if it is
            there.

    Raises:
        InputError: a file is missing, or the manifest is not one.
    """
    data = _read_built(beside(app, ".manifest.sgx"), app)
    sigstruct = _read_built(beside(app, ".sig"), app)
    known = KnownManifest(data_home() / "manifests" / (platform or ""), data, sigstruct)
    recalled = None if platform is None else known.recall()
    if recalled is not None and recalled.cloister.trusted_index is not None:
        manifest = recalled
    else:
        manifest = _text(app, data).manifest
    return SignedEnclave(
        app=app,
        manifest_bytes=data,
        manifest=manifest,
        sigstruct=sigstruct,
        known=known,
        recalled=manifest is recalled,
    )


def _indexed(app: Path, reference: IndexReference) -> TrustedIndex:
    path = beside(app, ".index")
    try:
        return TrustedIndex.load(_read_built(path, app), bytes.fromhex(reference.sha256))
    except TrustedIndexError as error:
        raise TrustedIndexError(f"{path}: {error.message}", hint=error.hint) from error


def _text(app: Path, data: bytes) -> ManifestText:
    from cloister.manifest.parse import ManifestText

    return ManifestText(data.decode("utf-8", "replace"), str(beside(app, ".manifest.sgx")))


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
