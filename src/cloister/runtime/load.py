"""From the name of an application to what :mod:`cloister.runtime.launch` runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import InputError, UnsupportedByPlatformError
from cloister.manifest.signed import SignedEnclave, load_signed
from cloister.platforms.base import Enclave, Platform, SealingPolicy
from cloister.provision.variables import CONSTRUCTOR
from cloister.runtime.launch import Program


@dataclass(frozen=True)
class SignedProgram:
    """A program and the signed files from which its enclave starts."""

    program: Program
    signed: SignedEnclave

    def start(self, platform: Platform, libpal: Path | None) -> Enclave:
        """Start the enclave.

        Args:
            platform: where it runs.
            libpal: the measured runtime image; None takes the one of this installation.

        Raises:
            EnclaveStartError: the platform refuses: files and signature do not fit. Or the
                manifest was recalled, and this enclave does not confirm it.
            InputError, TrustedIndexError: the index of trusted files is missing or another one.
        """
        from cloister.platforms.image import runtime_image

        signed, sgx = self.signed, self.signed.manifest.sgx
        enclave = platform.start(
            manifest=signed.manifest_bytes,
            sigstruct=signed.sigstruct,
            image=runtime_image() if libpal is None else libpal.read_bytes(),
            enclave_size=sgx.enclave_size,
            max_threads=sgx.max_threads,
            edmm=sgx.edmm_enable,
            meanwhile=self._get_ready,
        )
        try:
            key = enclave.sealing_key(SealingPolicy.MRENCLAVE)
        except UnsupportedByPlatformError:
            key = None  # it can keep nothing, so what was recalled is not its own
        if signed.recalled and (key is None or not signed.known.is_confirmed(key)):
            enclave.close()
            raise signed.known.refusal()
        if key is not None and not signed.recalled:
            signed.known.keep(key, signed.manifest)
        return enclave

    def _get_ready(self) -> None:
        """Do what has to be done anyway while the measurement runs on another processor."""
        _ = self.signed.trusted
        variables = self.program.manifest.loader.env
        if self.program.manifest.cloister.keys or CONSTRUCTOR in variables:
            importlib.import_module("cloister.provision.client")


def enclave_program(
    app: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    platform: Platform,
    *,
    debug: bool = False,
) -> SignedProgram:
    """Load ``APP.manifest.sgx`` and ``APP.sig``; ``APP.index`` is loaded when the enclave starts.

    Raises:
        InputError: one of the two is missing or malformed.
    """
    signed = load_signed(app, platform=platform.name)
    program = Program(
        manifest=signed.manifest,
        base=_base(app),
        arguments=arguments,
        host_environment=environment,
        trusted=lambda: signed.trusted,
        debug=debug,
    )
    return SignedProgram(program, signed)


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
