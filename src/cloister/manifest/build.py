"""From a template to a signed enclave, and from its files back to one.

``APP`` names an application by its path without suffix. Built files: ``APP.manifest`` (rendered),
``APP.manifest.sgx`` (signed), ``APP.index`` (digests of trusted files) and ``APP.sig`` (SIGSTRUCT).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import InputError
from cloister.files import atomic_output, cache_home
from cloister.manifest.cache import HashCache
from cloister.manifest.hashing import ShowProgress, unseen
from cloister.manifest.index import TrustedEntry, write_index
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.manifest.signed import TEMPLATE_SUFFIX, beside
from cloister.manifest.template import Template
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
class Built:
    """What :func:`build` made.

    Attributes:
        app: path without suffix.
        files: what was written.
        measurement: MRENCLAVE and the layout.
        sigstruct: the signed SIGSTRUCT.
        manifest: the validated manifest.
        digests: of the trusted files.
    """

    app: Path
    files: tuple[Path, ...]
    measurement: Measurement
    sigstruct: Sigstruct
    manifest: Manifest
    digests: Digests


def app_of(template: Path) -> Path:
    """Return the application's path without suffix.

    Raises:
        InputError: the name does not end with ``.manifest.template``.
    """
    if not template.name.endswith(TEMPLATE_SUFFIX) or template.name == TEMPLATE_SUFFIX:
        raise InputError(
            f"{template}: the name of a template ends with {TEMPLATE_SUFFIX}",
            hint=f"rename it, e.g. app{TEMPLATE_SUFFIX}",
        )
    return template.with_name(template.name.removesuffix(TEMPLATE_SUFFIX))


def render_template(
    template: Path, definitions: Mapping[str, str | bool], tree: FileTree
) -> ManifestText:
    """Render a template file and validate the result.

    Raises:
        InputError: the file does not exist.
        ManifestError: the template or the manifest is wrong.
    """
    rendering = Template(_read_text(template), definitions, source=str(template), tree=tree)
    return ManifestText(rendering.render(), str(template), rendering.line_of)


def render_only(template: Path, definitions: Mapping[str, str | bool]) -> Path:
    """Render and check a template for direct mode; return the manifest that was written.

    Raises:
        InputError, ManifestError: as :func:`render_template`.
    """
    app = app_of(template)
    rendered = render_template(template, definitions, FileTree())
    path = beside(app, ".manifest")
    with atomic_output(path) as stream:
        stream.write(rendered.text.encode())
    return path


def build(
    template: Path,
    *,
    definitions: Mapping[str, str | bool],
    signing_key: rsa.RSAPrivateKey,
    date: str,
    libpal: bytes,
    now: datetime.datetime,
    format: Format = Format.CLOISTER,
    use_cache: bool = True,
    show: ShowProgress = unseen,
) -> Built:
    """Render a template, hash its trusted files, measure, sign, and write the four files.

    The same inputs give the same bytes.

    Args:
        template: ``APP.manifest.template``; relative URIs are relative to its directory.
        definitions: names that the template may use.
        signing_key: RSA-3072 with exponent 3.
        date: of the signature, ``YYYY-MM-DD``.
        libpal: the runtime image: an ELF file.
        now: today, for the cache of hashes.
        format: dialect of the signed manifest.
        use_cache: whether hashes of unchanged files may come from the cache.
        show: shows how far the hashing is.

    Raises:
        CloisterError: anything that is wrong with the inputs; nothing is written then.
    """
    app = app_of(template)
    tree = FileTree()
    rendered = render_template(template, definitions, tree)
    problem = rendered.trusted_file_problem
    candidates = expand(
        rendered.manifest.sgx.trusted_files,
        template.parent,
        tree,
        problem,
        bare_directories=rendered.graphene,
    )
    cache = HashCache(cache_home() / "hashes" if use_cache else None)
    today = int(now.timestamp() // 86400)
    digests = digest(candidates, cache, problem, today=today, show=show)
    signed, index = _signed_manifest(rendered.document, digests.entries, format)
    measurement = measure_manifest(signed, rendered.manifest, libpal)
    sigstruct = unsigned(
        rendered.manifest, measurement.mrenclave, signing_key.public_key().public_numbers().n, date
    ).sign(signing_key)
    files = {
        ".manifest": rendered.text.encode(),
        ".index": index,
        ".sig": sigstruct.pack(),
        ".manifest.sgx": signed,  # last: it is what makes the others belong together
    }
    written = _write_together({beside(app, suffix): data for suffix, data in files.items()})
    return Built(app, written, measurement, sigstruct, rendered.manifest, digests)


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


def unsigned(manifest: Manifest, mrenclave: bytes, modulus: int, date: str) -> Sigstruct:
    """Return the SIGSTRUCT of a manifest, still without signature.

    Raises:
        InputError: ``date`` is no date.
    """
    sgx = manifest.sgx
    attributes = enclave_attributes(
        debug=sgx.debug, use_exinfo=sgx.use_exinfo, features=sgx.cpu_features.model_dump()
    )
    return Sigstruct(
        mr_enclave=mrenclave,
        modulus=modulus,
        isv_prod_id=sgx.isvprodid,
        isv_svn=sgx.isvsvn,
        date=encode_date(date),
        **dataclasses.asdict(attributes),
    )


def _signed_manifest(
    document: Mapping[str, Any], entries: Mapping[str, TrustedEntry], format: Format
) -> tuple[bytes, bytes | None]:
    """Return the manifest that is measured, and the index that belongs to it if it has one."""
    sgx = dict(document.get("sgx", {}))
    sgx.pop("trusted_files", None)
    if format is Format.GRAMINE:
        sgx["trusted_files"] = [
            {"uri": f"file:{path}", "sha256": entry.sha256.hex()} for path, entry in entries.items()
        ]
        return tomli_w.dumps({**document, "sgx": sgx}).encode(), None
    index = write_index(entries)
    reference = {"trusted_index": {"sha256": hashlib.sha256(index).hexdigest()}}
    return tomli_w.dumps({**document, "sgx": sgx, "cloister": reference}).encode(), index


def _write_together(files: Mapping[Path, bytes | None]) -> tuple[Path, ...]:
    """Write all files or none; a file without content is one that a former build left behind."""
    with contextlib.ExitStack() as stack:
        # The stack gives names in reverse order, when all contents are safely on disk.
        for path, data in reversed(list(files.items())):
            if data is not None:
                stack.enter_context(atomic_output(path)).write(data)
    for path, data in files.items():
        if data is None:
            path.unlink(missing_ok=True)
    return tuple(path for path, data in files.items() if data is not None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
