"""From a template to a signed enclave, and from its files back to one.

``APP`` names an application by its path without suffix. Built files: ``APP.manifest`` (rendered),
``APP.manifest.sgx`` (signed), ``APP.index`` (digests of trusted files) and ``APP.sig`` (SIGSTRUCT).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import InputError
from cloister.files import write_atomically, write_together
from cloister.manifest.parse import ManifestText
from cloister.manifest.prepare import Prepared, Settings, prepare
from cloister.manifest.rendering import Rendering
from cloister.manifest.signed import TEMPLATE_SUFFIX, beside
from cloister.sgx.sigstruct import Sigstruct


@dataclass(frozen=True)
class Built:
    """What was signed and written.

    Attributes:
        files: what was written.
        prepared: the final manifest and its measurement.
        sigstruct: the signed SIGSTRUCT.
    """

    files: tuple[Path, ...]
    prepared: Prepared
    sigstruct: Sigstruct


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


def manifest_of(rendering: Rendering) -> ManifestText:
    """Validate what a template renders to.

    Raises:
        InputError: the file does not exist.
        ManifestError: the template or the manifest is wrong.
    """
    return ManifestText(rendering.text, str(rendering.path), rendering.line_of)


def render_only(rendering: Rendering) -> Path:
    """Render and check a template for direct mode; return the manifest that was written.

    Raises:
        InputError, ManifestError: as :func:`manifest_of`.
    """
    app = app_of(rendering.path)
    rendered = manifest_of(rendering)
    path = beside(app, ".manifest")
    write_atomically(path, rendered.text.encode())
    return path


def build(
    rendering: Rendering, *, signing_key: rsa.RSAPrivateKey, date: str, settings: Settings
) -> Built:
    """Render a template, hash its trusted files, measure, sign, and write the four files.

    Args:
        rendering: of ``APP.manifest.template``; relative URIs are relative to its directory.
        signing_key: RSA-3072 with exponent 3.
        date: of the signature, ``YYYY-MM-DD``.
        settings: runtime image, format, cache.

    Raises:
        CloisterError: anything that is wrong with the inputs; nothing is written then.
    """
    app = app_of(rendering.path)
    rendered = manifest_of(rendering)
    prepared = prepare(rendered, rendering.path.parent, settings, rendering.tree)
    modulus = signing_key.public_key().public_numbers().n
    sigstruct = prepared.sigstruct(modulus, date).sign(signing_key)
    files = {
        ".manifest": rendered.text.encode(),
        ".index": prepared.index,
        ".sig": sigstruct.pack(),
        ".manifest.sgx": prepared.signed,  # last: it is what makes the others belong together
    }
    written = write_together({beside(app, suffix): data for suffix, data in files.items()})
    return Built(written, prepared, sigstruct)
