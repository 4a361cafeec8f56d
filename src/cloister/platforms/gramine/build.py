"""Gramine's manifest and SIGSTRUCT of an application, beside our own.

``APP.gramine.manifest`` and ``APP.gramine.manifest.sgx`` are the same text, in which every trusted
file has its hash; ``APP.gramine.sig`` is signed with the same key as ours. The measurement is our
own code's, of Gramine's own loader, and Gramine's signer has to come to the same one.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import MeasurementMismatchError, PlatformError
from cloister.files import write_together
from cloister.manifest.build import Built, app_of, manifest_of
from cloister.manifest.convert import Converted
from cloister.manifest.parse import ManifestText
from cloister.manifest.prepare import Format, Settings, prepare
from cloister.manifest.rendering import Rendering
from cloister.manifest.signed import beside
from cloister.manifest.signing_key import KEY_BITS
from cloister.platforms.gramine.bytecode import notes_on
from cloister.platforms.gramine.installation import Installation
from cloister.platforms.gramine.presence import APP_SUFFIX
from cloister.platforms.gramine.translation import Host, for_sgx
from cloister.sgx.sigstruct import EXPONENT, Sigstruct

_SIGNER = "gramine-sgx-sign"


@dataclasses.dataclass(frozen=True)
class GramineBuilt:
    """What was signed for Gramine.

    Attributes:
        built: files, measurement, SIGSTRUCT.
        title: which Gramine.
        theirs: the MRENCLAVE to which Gramine's own signer came, 32 bytes.
    """

    built: Built
    title: str
    theirs: bytes


def host_of(base: Path) -> Host:
    """Return what there is to know of this machine's files, from an application's directory."""
    return Host(lambda path: (base / path).is_dir(), os.path.isfile)


def translated(converted: Converted) -> ManifestText:
    """Return a translated manifest, validated."""
    return ManifestText(tomli_w.dumps(converted.document), "manifest for Gramine")


def build_for_gramine(
    rendering: Rendering,
    *,
    signing_key: rsa.RSAPrivateKey,
    date: str,
    settings: Settings,
) -> GramineBuilt:
    """Translate, hash, measure and sign for Gramine; write the three files.

    Args:
        rendering: of ``APP.manifest.template``.
        signing_key: RSA-3072 with exponent 3.
        date: of the signature.
        settings: as for our own build; the runtime image is Gramine's instead.

    Raises:
        MeasurementMismatchError: Gramine's signer measures something else; nothing is written.
        CloisterError: Gramine cannot run this program, or lacks a part.
    """
    installation = Installation.here()
    title = installation.title
    base = rendering.path.parent
    runtime = installation.runtime()
    text = manifest_of(rendering)
    converted = for_sgx(text, runtime, host_of(base))
    prepared = prepare(
        translated(converted),
        base,
        dataclasses.replace(
            settings,
            libpal=installation.libpal(),
            format=Format.GRAMINE,
            entrypoint_is_uri=not runtime.entrypoint_has_hash,
        ),
        rendering.tree,
    )
    notes = (*converted.notes, *prepared.notes, *notes_on(text.manifest, base))
    prepared = dataclasses.replace(prepared, notes=notes)
    modulus = signing_key.public_key().public_numbers().n
    sigstruct = prepared.sigstruct(modulus, date).sign(signing_key)
    theirs = measured_by_gramine(installation, prepared.signed, base)
    if theirs != sigstruct.mr_enclave:
        raise MeasurementMismatchError(
            f"{title}: {_SIGNER} measures {theirs.hex()}, Cloister {sigstruct.mr_enclave.hex()}",
            hint="nothing was written for Gramine; please report this, with both manifests",
        )
    gramine_app = beside(app_of(rendering.path), APP_SUFFIX)
    written = write_together(
        {
            beside(gramine_app, ".manifest"): prepared.signed,
            beside(gramine_app, ".sig"): sigstruct.pack(),
            beside(gramine_app, ".manifest.sgx"): prepared.signed,
        }
    )
    return GramineBuilt(Built(written, prepared, sigstruct), title, theirs)


def measured_by_gramine(installation: Installation, manifest: bytes, base: Path) -> bytes:
    """Return the MRENCLAVE that Gramine's signer computes for a manifest, 32 bytes.

    It signs with a key that is made for this and forgotten: the measurement does not depend on
    the key, and the real one (or its passphrase) is nobody else's business.

    Raises:
        PlatformError: the signer failed.
    """
    signer = installation.require(_SIGNER)
    with tempfile.TemporaryDirectory(prefix="cloister-") as name:
        directory = Path(name)
        source, output, signature = (
            directory / n for n in ("a.manifest", "a.manifest.sgx", "a.sig")
        )
        source.write_bytes(manifest)
        key = directory / "key.pem"
        key.touch(mode=0o600)
        key.write_bytes(_throwaway_key())
        command: list[str | Path] = [signer, "--manifest", source, "--output", output, "--key", key]
        command += ["--libpal", installation.libpal_path, "--sigfile", signature]
        try:
            done = subprocess.run(
                command, cwd=base, capture_output=True, text=True, timeout=600, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PlatformError(f"{signer} does not work: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
            raise PlatformError(f"{signer} does not sign the manifest: {last}")
        try:
            return Sigstruct.unpack(signature.read_bytes()).mr_enclave
        except FileNotFoundError as error:
            raise PlatformError(f"{signer} wrote no SIGSTRUCT") from error


def _throwaway_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=EXPONENT, key_size=KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
