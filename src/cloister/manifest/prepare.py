"""Signing up to the signature: hash trusted files, write the final manifest, measure it."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import tomli_w

from cloister import __version__
from cloister.files import cache_home
from cloister.manifest.cache import HashCache, Memo
from cloister.manifest.digests import Digests, digest, look, state_of
from cloister.manifest.hashing import ShowProgress, unseen
from cloister.manifest.index import TrustedEntry, TrustedIndex, write_index
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand, is_absent_libos
from cloister.sgx.features import enclave_attributes
from cloister.sgx.measurement import Measurement, areas_of, measure
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
        entrypoint_is_uri: for Gramine before 1.8: ``loader.entrypoint`` has no digest of its own.
        whole: hash whole files besides their chunks even where the format does not need it.
        use_cache: whether hashes of unchanged files may come from the cache.
        show: shows how far the hashing is.
    """

    libpal: bytes
    now: datetime.datetime
    format: Format = Format.CLOISTER
    entrypoint_is_uri: bool = False
    whole: bool = False
    use_cache: bool = True
    show: ShowProgress = unseen


class Amount(NamedTuple):
    """How much is trusted: files, their bytes as far as they are known, files hashed now."""

    files: int
    size: int
    hashed: int


@dataclass(frozen=True)
class Prepared:
    """An enclave that only lacks its signature.

    Attributes:
        signed: the final manifest, as it is measured.
        index: the index of trusted files; None if the manifest lists them itself.
        manifest: the final manifest, validated.
        measurement: MRENCLAVE and the layout.
        amount: how much is trusted.
        notes: what its builder should know.
    """

    signed: bytes
    index: bytes | None
    manifest: Manifest
    measurement: Measurement
    amount: Amount
    notes: tuple[str, ...] = ()

    def trusted(self) -> TrustedIndex:
        """Return what is known of the trusted files."""
        if self.index is not None:
            return TrustedIndex.load(self.index, hashlib.sha256(self.index).digest())
        files = self.manifest.sgx.trusted_files
        return TrustedIndex.from_hashes(
            {file.path: bytes.fromhex(file.sha256) for file in files if file.sha256}
        )

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
    if text.manifest.cloister.trusted_index is not None:
        raise text.problem(("cloister", "trusted_index"), "only the signer writes this")
    trusted = _Trusted(text, base, settings, tree)
    index: bytes | None = None
    if settings.format is Format.GRAMINE:
        document, notes = _for_gramine(text, trusted, base, settings)
    else:
        index = trusted.index()
        document = _with_index(text.document, index)
        notes = trusted.notes()
    signed = tomli_w.dumps(document).encode()
    manifest = Manifest.model_validate(document)
    measurement = _remembered(signed, manifest, settings)
    return Prepared(signed, index, manifest, measurement, trusted.amount(), notes)


def with_hashes(
    text: ManifestText, base: Path, settings: Settings, tree: FileTree
) -> tuple[bytes, tuple[str, ...]]:
    """Return a manifest in Gramine's format, with the hash of every trusted file, and notes.

    It is not measured, so that it may also be one for ``gramine-direct``; else as :func:`prepare`.
    """
    trusted = _Trusted(text, base, dataclasses.replace(settings, format=Format.GRAMINE), tree)
    document, notes = _for_gramine(text, trusted, base, settings)
    return tomli_w.dumps(document).encode(), notes


def _for_gramine(
    text: ManifestText, trusted: _Trusted, base: Path, settings: Settings
) -> tuple[dict[str, Any], tuple[str, ...]]:
    from cloister.manifest.gramine_format import gramine_document

    document, notes = gramine_document(
        text,
        trusted.entries(),
        trusted.lines(),
        base,
        entrypoint_is_uri=settings.entrypoint_is_uri,
    )
    return document, (*notes, *trusted.notes())


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
    prepared = Prepared(data, index, text.manifest, measurement, Amount(0, 0, 0))
    sizes = [max(entry.size, 0) for _, entry in prepared.trusted().entries()]
    return dataclasses.replace(prepared, amount=Amount(len(sizes), sum(sizes), 0))


def measure_manifest(signed: bytes, manifest: Manifest, libpal: bytes) -> Measurement:
    """Measure a signed manifest with the size, threads and EDMM that it asks for."""
    return measure(signed, libpal, **_shape(manifest))


class _Shape(TypedDict):
    enclave_size: int
    max_threads: int
    edmm: bool


def _shape(manifest: Manifest) -> _Shape:
    sgx = manifest.sgx
    return {
        "enclave_size": sgx.enclave_size,
        "max_threads": sgx.max_threads,
        "edmm": sgx.edmm_enable,
    }


def _remembered(signed: bytes, manifest: Manifest, settings: Settings) -> Measurement:
    """Measure, unless exactly this was measured before: 4 GiB cost 100 MB of hashing."""
    caches = cache_home() if settings.use_cache else None
    memo = Memo(None if caches is None else caches / "measurements")
    shape = _shape(manifest)
    key = hashlib.sha256(f"{__version__} {sorted(shape.items())}\n".encode())
    for part in (signed, settings.libpal):
        key.update(hashlib.sha256(part).digest())
    known = memo.get(key.digest())
    if known is not None:
        return Measurement(known, areas_of(signed, settings.libpal, **shape))
    measured = measure(signed, settings.libpal, **shape)
    memo.put(key.digest(), measured.mrenclave)
    return measured


class _Trusted:
    """The trusted files of one manifest, hashed at most once."""

    def __init__(self, text: ManifestText, base: Path, settings: Settings, tree: FileTree) -> None:
        self._problem = text.trusted_file_problem
        self._settings = settings
        self._caches = cache_home() if settings.use_cache else None
        listed = text.manifest.sgx.trusted_files
        self._absent = [file.uri for file in listed if is_absent_libos(file, base)]
        self._candidates = expand(
            listed,
            base,
            tree,
            self._problem,
            bare_directories=text.graphene,
            needs_libos=settings.format is Format.GRAMINE,
        )
        self._seen = look(self._candidates, tree, self._problem)
        self._hashed = 0
        self._left_out: tuple[str, ...] = ()

    def index(self) -> bytes:
        """Return the index of the files, as it was last time if nothing changed since."""
        memo = Memo(
            None if self._caches is None or self._settings.whole else self._caches / "indexes"
        )
        state = state_of(self._candidates, self._seen)
        index = memo.get(state)
        if index is None:
            digests = self._digests()
            index = write_index(digests.entries)
            if digests.settled:
                memo.put(state, index)
        return index

    def entries(self) -> Mapping[str, TrustedEntry]:
        """Return the digests of the files, in the order of the manifest."""
        return self._digests().entries

    def lines(self) -> dict[str, int]:
        """Return which item of the list names each file, from 0."""
        return {path: candidate.line for path, candidate in self._candidates.items()}

    def amount(self) -> Amount:
        """Return how much was trusted; after hashing."""
        sizes = {host: seen.size for host, seen in self._seen.items()}
        size = sum(sizes.values()) - sum(sizes[host] for host in self._left_out)
        return Amount(len(self._candidates) - len(self._left_out), size, self._hashed)

    def notes(self) -> tuple[str, ...]:
        """Return what the builder should know; after hashing."""
        notes = [
            f"passed over: {uri}, Gramine's library OS; it is not on this machine, and Cloister's"
            " runtime needs none"
            for uri in self._absent
        ]
        if self._left_out:
            first, *others = self._left_out
            more = f" and {len(others)} more" if others else ""
            notes.append(f"not trusted, because you may not read it: {first}{more}")
        return tuple(notes)

    def _digests(self) -> Digests:
        digests = digest(
            self._candidates,
            self._seen,
            HashCache(None if self._caches is None else self._caches / "hashes"),
            self._problem,
            whole=self._settings.whole or self._settings.format is Format.GRAMINE,
            today=int(self._settings.now.timestamp() // 86400),
            show=self._settings.show,
        )
        self._hashed = digests.hashed
        self._left_out = digests.left_out
        return digests


def _with_index(document: Mapping[str, Any], index: bytes) -> dict[str, Any]:
    """Replace the list of trusted files by the digest of the index."""
    sgx = {key: value for key, value in document.get("sgx", {}).items() if key != "trusted_files"}
    reference = {"trusted_index": {"sha256": hashlib.sha256(index).hexdigest()}}
    return {**document, "sgx": sgx, "cloister": {**document.get("cloister", {}), **reference}}
