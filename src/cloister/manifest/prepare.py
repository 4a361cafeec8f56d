"""Signing up to the signature: hash trusted files, write the final manifest, measure it."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from cloister.files import cache_home
from cloister.manifest.cache import HashCache
from cloister.manifest.gramine_format import gramine_document
from cloister.manifest.hashing import ShowProgress, unseen
from cloister.manifest.index import TrustedEntry, TrustedIndex, write_index
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import Digests, digest, expand
from cloister.sgx.features import enclave_attributes
from cloister.sgx.measurement import Measurement, measure
from cloister.sgx.sigstruct import Sigstruct, encode_date


class Format(enum.Enum):
    """Dialect of the signed manifest."""

    CLOISTER = "cloister"
    GRAMINE = "gramine"


@dataclass(frozen=True)
class Settings:
    """How to prepare.

    Attributes:
        libpal: the runtime image: an ELF file.
        now: the time, for the cache of hashes.
        format: dialect of the signed manifest.
        use_cache: whether hashes of unchanged files may come from the cache.
        show: shows how far the hashing is.
    """

    libpal: bytes
    now: datetime.datetime
    format: Format = Format.CLOISTER
    use_cache: bool = True
    show: ShowProgress = unseen


@dataclass(frozen=True)
class Prepared:
    """An enclave that only lacks its signature.

    Attributes:
        signed: the final manifest, as it is measured.
        index: the index of trusted files; None if the manifest lists them itself.
        manifest: the final manifest, validated.
        measurement: MRENCLAVE and the layout.
        digests: of the trusted files.
        notes: what its builder should know.
    """

    signed: bytes
    index: bytes | None
    manifest: Manifest
    measurement: Measurement
    digests: Digests
    notes: tuple[str, ...] = ()

    @property
    def trusted(self) -> Mapping[str, TrustedEntry]:
        """What is known of the trusted files, by normalised URI path."""
        return self.digests.entries

    def sigstruct(self, modulus: int, date: str) -> Sigstruct:
        """Return the SIGSTRUCT, still without signature.

        Args:
            modulus: of the key that is to sign.
            date: ``YYYY-MM-DD``.

        Raises:
            InputError: ``date`` is no date.
        """
        sgx = self.manifest.sgx
        attributes = enclave_attributes(
            debug=sgx.debug, use_exinfo=sgx.use_exinfo, features=sgx.cpu_features.model_dump()
        )
        return Sigstruct(
            mr_enclave=self.measurement.mrenclave,
            modulus=modulus,
            isv_prod_id=sgx.isvprodid,
            isv_svn=sgx.isvsvn,
            date=encode_date(date),
            **dataclasses.asdict(attributes),
        )


def prepare(text: ManifestText, base: Path, settings: Settings, tree: FileTree) -> Prepared:
    """Hash what a manifest trusts and measure the result. The same inputs give the same bytes.

    Args:
        text: the manifest, in either dialect.
        base: its directory, where relative URIs start.
        settings: see :class:`Settings`.
        tree: listings of directories.

    Raises:
        CloisterError: a trusted file is missing, or the enclave is too small for what is in it.
    """
    digests = _digests(text, base, settings, tree)
    notes: tuple[str, ...] = ()
    index: bytes | None = None
    if settings.format is Format.GRAMINE:
        document, notes = gramine_document(text, digests.entries, base)
    else:
        index = write_index(digests.entries)
        document = _with_index(text.document, index)
    signed = tomli_w.dumps(document).encode()
    manifest = Manifest.model_validate(document)
    return Prepared(
        signed, index, manifest, measure_manifest(signed, manifest, settings.libpal), digests, notes
    )


def prepare_final(data: bytes, text: ManifestText, index: bytes | None, libpal: bytes) -> Prepared:
    """Measure a manifest as it is: all its trusted files have hashes, or it has an index.

    Args:
        data: the manifest, byte for byte.
        text: the same, parsed.
        index: the index that belongs to it, if it names one.
        libpal: the runtime image.

    Raises:
        CloisterError: the enclave is too small for what is in it.
    """
    measurement = measure_manifest(data, text.manifest, libpal)
    return Prepared(data, index, text.manifest, measurement, Digests(_known(text, index), 0))


def _known(text: ManifestText, index: bytes | None) -> dict[str, TrustedEntry]:
    """Return what a final manifest says of its trusted files."""
    if index is None:
        files = text.manifest.sgx.trusted_files
        hashes = {file.path: bytes.fromhex(file.sha256) for file in files if file.sha256}
        trusted = TrustedIndex.from_hashes(hashes)
    else:
        trusted = TrustedIndex.load(index, hashlib.sha256(index).digest())
    return dict(trusted.entries())


def measure_manifest(signed: bytes, manifest: Manifest, libpal: bytes) -> Measurement:
    """Measure a signed manifest with the size, threads and EDMM that it asks for."""
    sgx = manifest.sgx
    return measure(
        signed,
        libpal,
        enclave_size=sgx.enclave_size,
        max_threads=sgx.max_threads,
        edmm=sgx.edmm_enable,
    )


def _digests(text: ManifestText, base: Path, settings: Settings, tree: FileTree) -> Digests:
    problem = text.trusted_file_problem
    files = text.manifest.sgx.trusted_files
    candidates = expand(files, base, tree, problem, bare_directories=text.graphene)
    cache = HashCache(cache_home() / "hashes" if settings.use_cache else None)
    today = int(settings.now.timestamp() // 86400)
    return digest(candidates, cache, problem, today=today, show=settings.show)


def _with_index(document: Mapping[str, Any], index: bytes) -> dict[str, Any]:
    """Replace the list of trusted files by the digest of the index."""
    sgx = {key: value for key, value in document.get("sgx", {}).items() if key != "trusted_files"}
    reference = {"trusted_index": {"sha256": hashlib.sha256(index).hexdigest()}}
    return {**document, "sgx": sgx, "cloister": reference}
