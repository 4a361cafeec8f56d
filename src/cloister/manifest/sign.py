"""Signing a rendered manifest, in one step or in two.

In two steps the signing key never comes near: :func:`prepare_file` gives what is to be signed
(256 bytes, RSASSA-PKCS1-v1_5 with SHA-256), an HSM signs it anywhere, and :func:`attach` makes the
SIGSTRUCT of both.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import InputError, SigstructError, TrustedIndexError
from cloister.manifest.parse import ManifestText
from cloister.manifest.prepare import Prepared, Settings, prepare, prepare_final
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand
from cloister.sgx.sigstruct import Sigstruct

_MANIFEST_SUFFIXES = (".manifest.sgx", ".manifest")


@dataclass(frozen=True)
class ManifestFile:
    """A rendered manifest on disk.

    Attributes:
        path: the file.
        data: its bytes.
        text: the same, validated.
    """

    path: Path
    data: bytes
    text: ManifestText


def read_manifest(path: Path) -> ManifestFile:
    """Read and validate a rendered manifest.

    Raises:
        InputError: it does not exist or is not text.
        ManifestError: it is not valid.
    """
    try:
        data = path.read_bytes()
        text = data.decode()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such manifest") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    return ManifestFile(path, data, ManifestText(text, str(path)))


def prepare_file(manifest: ManifestFile, settings: Settings) -> Prepared:
    """Prepare a manifest for signing.

    One that is final already (all trusted files have hashes, or are in an index beside it) is taken
    byte for byte, as Gramine's signer takes it.

    Raises:
        CloisterError: as :func:`cloister.manifest.prepare.prepare`; or the index is not the one
            that the manifest names.
    """
    model = manifest.text.manifest
    if model.cloister.trusted_index is not None:
        index = _index_of(manifest, bytes.fromhex(model.cloister.trusted_index.sha256))
        return prepare_final(manifest.data, manifest.text, index, settings.libpal)
    if not manifest.text.graphene and all(file.sha256 for file in model.sgx.trusted_files):
        return prepare_final(manifest.data, manifest.text, None, settings.libpal)
    return prepare(manifest.text, manifest.path.parent, settings, FileTree())


def trusted_names(manifest: ManifestFile, *, only_unhashed: bool = False) -> list[Path]:
    """Return the trusted files of a manifest.

    Args:
        manifest: the manifest.
        only_unhashed: leave out those with a hash, which are not read.

    Raises:
        CloisterError: one of those without a hash is missing.
    """
    text = manifest.text
    candidates = expand(
        text.manifest.sgx.trusted_files,
        manifest.path.parent,
        FileTree(),
        text.trusted_file_problem,
        bare_directories=text.graphene,
    )
    return [
        Path(item.host) for item in candidates.values() if not only_unhashed or item.sha256 is None
    ]


def trusted_among(manifest: ManifestFile, written: Iterable[Path | None]) -> list[Path]:
    """Return the trusted files that have the name of a file which exists and is to be written."""
    names = {path.name for path in written if path is not None and path.exists()}
    return [path for path in trusted_names(manifest) if path.name in names] if names else []


def rule_for_make(made: Sequence[Path], needed: Sequence[Path]) -> str:
    """Return a rule that tells make of what files are made.

    Raises:
        InputError: a name has a line break, which no rule can have.
    """
    lines = [f"{' '.join(map(_for_make, made))}:", *(f"\t{_for_make(path)}" for path in needed)]
    return " \\\n".join(lines) + "\n"


def _for_make(path: Path) -> str:
    """Return a name as make reads it back."""
    name = str(path)
    if "\n" in name:
        raise InputError(f"{name!r}: make knows no names with line breaks")
    return re.sub(r"(\\*)([ #:])", r"\1\1\\\2", name).replace("$", "$$")


def _index_of(manifest: ManifestFile, expected: bytes) -> bytes:
    path = index_path(manifest.path)
    try:
        index = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing, but {manifest.path} refers to it") from error
    if not hmac.compare_digest(hashlib.sha256(index).digest(), expected):
        raise TrustedIndexError(f"{path}: its SHA-256 is not the one in {manifest.path}")
    return index


def stem(manifest: Path) -> str:
    """Return the name of a manifest without ``.manifest`` or ``.manifest.sgx``."""
    for suffix in _MANIFEST_SUFFIXES:
        if manifest.name.endswith(suffix) and manifest.name != suffix:
            return manifest.name.removesuffix(suffix)
    return manifest.name


def index_path(manifest: Path) -> Path:
    """Return where the index of a signed manifest is."""
    return manifest.with_name(f"{stem(manifest)}.index")


def sigstruct_path(manifest: Path) -> Path:
    """Return where the SIGSTRUCT of a manifest is by default: beside it."""
    return manifest.with_name(f"{stem(manifest)}.sig")


def outputs(prepared: Prepared, output: Path) -> dict[Path, bytes | None]:
    """Return the files of a prepared enclave, without its signature."""
    return {index_path(output): prepared.index, output: prepared.signed}


def require_apart(written: Iterable[Path | None], read: Iterable[Path | None]) -> None:
    """Refuse to write a file over another one of the same command; None stands for no file.

    Raises:
        InputError: two names are of one file.
    """
    taken = {path.resolve() for path in read if path is not None}
    for path in filter(None, written):
        if path.resolve() in taken:
            raise InputError(
                f"{path}: what is written there would replace another file of this command",
                hint="give each file a name of its own",
            )
        taken.add(path.resolve())


def kept_apart(manifest: ManifestFile, prepared: Prepared) -> Path | None:
    """Return the manifest, which the signed one must not replace unless it is the same bytes."""
    return None if prepared.signed == manifest.data else manifest.path


def attach(to_be_signed: bytes, modulus: int, signature: bytes) -> Sigstruct:
    """Make a SIGSTRUCT of what was to be signed and its signature.

    Args:
        to_be_signed: the 256 bytes of :meth:`Sigstruct.to_be_signed`.
        modulus: of the key that signed.
        signature: 384 bytes, big endian, as RSA libraries and HSMs give it.

    Raises:
        SigstructError: the signature is not one of these bytes by this key.
    """
    try:
        unsigned = Sigstruct.from_to_be_signed(to_be_signed, modulus)
    except SigstructError as error:
        raise SigstructError(
            f"to be signed: {error.message}", hint="pass the file that --to-be-signed wrote"
        ) from error
    return unsigned.with_signature(signature)
