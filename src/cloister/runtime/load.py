"""From the name of an application to what :mod:`cloister.runtime.launch` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cloister.errors import EnclaveStartError, InputError, UnsupportedByPlatformError
from cloister.manifest.signed import SignedEnclave, load_signed
from cloister.platforms.base import Enclave, Platform, SealingPolicy, choose_platform
from cloister.provision.variables import CONSTRUCTOR
from cloister.runtime.attester import SealingRequest, Started
from cloister.runtime.program import Program


class SignedProgram(NamedTuple):
    """A program and the signed files from which its enclave starts."""

    program: Program
    signed: SignedEnclave

    @property
    def sealing(self) -> tuple[SealingRequest, ...]:
        """The sealing keys that starting and running it asks for."""
        masks = self.signed.manifest.sgx.seal_key
        given = (masks.flags_mask, masks.xfrm_mask, masks.misc_mask)
        return (
            SealingRequest(SealingPolicy.MRENCLAVE),
            *(SealingRequest(policy, *given) for policy in SealingPolicy),
        )

    @property
    def provisions(self) -> bool:
        """Whether the manifest may ask key servers for secrets."""
        manifest = self.program.manifest
        return bool(manifest.cloister.keys) or CONSTRUCTOR in manifest.loader.env

    def start(self, platform: Platform, libpal: Path | None) -> Enclave:
        """Start the enclave; what it was loaded with has to be confirmed then.

        Args:
            platform: where it runs.
            libpal: the measured runtime image; None takes the one of this installation.

        Raises:
            EnclaveStartError: the platform refuses: files and signature do not fit.
        """
        from cloister.platforms.image import runtime_image

        signed, sgx = self.signed, self.signed.manifest.sgx
        return platform.start(
            manifest=signed.manifest_bytes,
            sigstruct=signed.sigstruct,
            image=runtime_image() if libpal is None else libpal.read_bytes(),
            enclave_size=sgx.enclave_size,
            max_threads=sgx.max_threads,
            edmm=sgx.edmm_enable,
        )

    def confirm(self, enclave: Enclave, digest: bytes) -> None:
        """Make sure that an enclave was started from this, manifest and all.

        A manifest that was recalled has to be one that the enclave has kept; another is kept now.

        Args:
            enclave: the enclave.
            digest: of the signed files that it was started from.

        Raises:
            EnclaveStartError: it was started from others, or has not kept this manifest.
        """
        signed = self.signed
        if digest != signed.digest:
            raise EnclaveStartError(
                f"{signed.app}: manifest or signature changed while they were loaded",
                hint="run again when nobody builds the application",
            )
        try:
            key = enclave.sealing_key(SealingPolicy.MRENCLAVE)
        except UnsupportedByPlatformError:
            key = None  # it can keep nothing, so what was recalled is not its own
        if signed.recalled and (key is None or not signed.known.is_confirmed(key)):
            raise signed.known.refusal()
        if key is not None and not signed.recalled:
            signed.known.keep(key, signed.manifest)


def enclave_program(
    app: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    platform: str,
    *,
    debug: bool = False,
) -> SignedProgram:
    """Load ``APP.manifest.sgx`` and ``APP.sig``; ``APP.index`` is loaded when it is asked for.

    Args:
        app: path without suffix.
        arguments: for the program.
        environment: the caller's.
        platform: name of the one where it is to run.
        debug: show tracebacks of our own defects.

    Raises:
        InputError: one of the two is missing or malformed.
    """
    signed = load_signed(app, platform=platform)
    program = Program(
        manifest=signed.manifest,
        base=_base(app),
        arguments=arguments,
        host_environment=environment,
        trusted=lambda: signed.trusted,
        debug=debug,
    )
    return SignedProgram(program, signed)


def start_enclave(app: Path, platform: str, libpal: Path | None) -> Started:
    """Start the enclave of a signed application; what its manifest says it will ask for.

    Args:
        app: path without suffix.
        platform: name of the one where it runs.
        libpal: the measured runtime image; None takes the one of this installation.

    Raises:
        CloisterError: a file is missing or malformed, or the platform refuses.
    """
    where = choose_platform(platform)
    signed = enclave_program(app, (), {}, platform)
    enclave = signed.start(where, libpal)
    digest = signed.signed.digest
    return Started(enclave, digest, where.description, signed.sealing, signed.provisions)


def direct_program(
    app: Path, arguments: Sequence[str], environment: Mapping[str, str], *, debug: bool = False
) -> Program:
    """Load ``APP.manifest`` for direct mode.

    Raises:
        InputError: it is missing or malformed.
    """
    path = app.with_name(f"{app.name}.manifest")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: does not exist; APP is the name that stands before .manifest",
            hint=f"cloister build --mode direct {app.name}.manifest.template",
        ) from error
    from cloister.manifest.parse import parse_manifest

    return Program(
        manifest=parse_manifest(text, str(path)),
        base=_base(app),
        arguments=arguments,
        host_environment=environment,
        debug=debug,
    )


def _base(app: Path) -> Path:
    """Return the directory where an application's relative URIs start."""
    return app.resolve().parent
