"""``secret_prov_server_dcap``: the tutorial's key server, for the directory it is started in.

It releases ``files/wrap-key``, as 32 hex digits and a NUL, on port 4433, with the certificate and
key in ``certs/``. Which enclaves may have it:

- if any of ``RA_TLS_MRENCLAVE``, ``RA_TLS_MRSIGNER``, ``RA_TLS_ISV_PROD_ID`` and
  ``RA_TLS_ISV_SVN`` is set: those that Gramine's rules for these variables accept;
- otherwise those that were built in this directory: its ``*.sig`` files, looked at with each
  client. (Graphene's server accepted every enclave then.)
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cloister.attestation.policy import IDENTITY, one_of
from cloister.cli.main import run_command
from cloister.errors import CloisterError, InputError, WrongMeasurementError
from cloister.provision import ra_tls_variables
from cloister.sgx.sigstruct import Sigstruct

if TYPE_CHECKING:
    from cloister.attestation.evidence import Evidence
    from cloister.attestation.policy import Policy
    from cloister.attestation.trust import Trust
    from cloister.attestation.verdict import Check
    from cloister.provision.service import Settings

NAME: Final = "secret_prov_server_dcap"
KEY: Final = "files/wrap-key"
CERTIFICATES: Final = (
    ("certs/server2-sha256.crt", "certs/server2.key"),
    ("certs/server.crt", "certs/server.key"),
)
PORT: Final = "SECRET_PROVISION_LISTENING_PORT"
TRUST_SIMULATED: Final = "CLOISTER_TRUST_SIMULATED"
PCCS: Final = "CLOISTER_PCCS"
_WARNING: Final = (
    "WARNING: neither RA_TLS_MRSIGNER nor RA_TLS_MRENCLAVE names an enclave: every enclave gets"
    " the key, which is no security at all"
)


@dataclasses.dataclass(frozen=True)
class BuiltHere:
    """The enclave was built in a directory: its measurement is in one of the ``*.sig`` there."""

    directory: Path
    names = IDENTITY

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        found = ", ".join(f"{name}: {value.hex()}" for name, value in self._measurements().items())
        return f"the enclaves built in this directory ({found or 'no *.sig yet'})"

    def verify(self, evidence: Evidence) -> Check:
        """Compare MRENCLAVE with the files that are there now."""
        found = evidence.sgx.mr_enclave if evidence.sgx else None
        accepted = self._measurements().values()
        check = one_of("MRENCLAVE", found, accepted, WrongMeasurementError)
        return check if accepted else dataclasses.replace(check, expected=self.describe())

    def _measurements(self) -> dict[str, bytes]:
        """Return MRENCLAVE by file name; a file that is no genuine SIGSTRUCT names no enclave."""
        measurements = {}
        for path in sorted(self.directory.glob("*.sig")):
            try:
                sigstruct = Sigstruct.unpack(path.read_bytes())
                sigstruct.verify()
            except (CloisterError, OSError):
                continue
            measurements[path.name] = sigstruct.mr_enclave
        return measurements


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(run_command(command, given, NAME))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--raw", is_flag=True, help="Send the 16 bytes themselves, as Gramine expects them.")
def command(raw: bool) -> None:
    """Release files/wrap-key to the enclaves built in this directory, on port 4433.

    Variables: RA_TLS_MRENCLAVE, RA_TLS_MRSIGNER, RA_TLS_ISV_PROD_ID and RA_TLS_ISV_SVN say by
    Gramine's rules who may have it instead; RA_TLS_ALLOW_* what is tolerated.
    CLOISTER_TRUST_SIMULATED names bundles of SIMULATED platforms to trust, separated by colons
    (from `cloister platform export`). CLOISTER_PCCS is where collateral of real ones comes from
    [default: intel]. SECRET_PROVISION_LISTENING_PORT is another port.

    \b
    Example:  cloister platform export platform.json
              CLOISTER_TRUST_SIMULATED=platform.json secret_prov_server_dcap &
    """
    from cloister.cli.serve import Parts, Report, read_secret

    environment = os.environ
    policy = _policy(environment)
    print(f"--- Reading the wrap key from '{KEY}' ---", flush=True)
    if not Path(KEY).exists():
        raise InputError(f"{KEY}: no such file", hint=f"make one: pf_crypt gen-key -w {KEY}")
    secret = read_secret(KEY, policy, as_hex=not raw)
    settings = _settings(environment)
    parts = Parts(settings, lambda: _trust(environment), Report(False), None)
    print(f"--- Starting the key server on port {settings.listen[1]} ---", flush=True)
    parts.serve_one(secret, None)


def _policy(environment: Mapping[str, str]) -> Policy:
    if not ra_tls_variables.is_set(environment):
        return ra_tls_variables.with_tolerances(BuiltHere(Path.cwd()), environment)
    named = ra_tls_variables.measurements(environment)
    if named.accepts_anyone:
        print(_WARNING, file=sys.stderr, flush=True)
    return ra_tls_variables.with_tolerances(named, environment)


def _settings(environment: Mapping[str, str]) -> Settings:
    from cloister.provision.service import Settings

    certificate, key = _certificate()
    text = environment.get(PORT, "4433")
    if not text.isdecimal() or int(text) > 65535:
        raise InputError(f"{PORT}: {text!r} is not a port")
    return Settings(certificate=certificate, key=key, listen=("0.0.0.0", int(text)))  # noqa: S104


def _certificate() -> tuple[Path, Path]:
    for certificate, key in CERTIFICATES:
        if Path(certificate).exists():
            return Path(certificate), Path(key)
    names = " or ".join(certificate for certificate, _ in CERTIFICATES)
    raise InputError(f"{names}: no such file", hint="make a pair with: cloister certs new certs")


def _trust(environment: Mapping[str, str]) -> Trust:
    from cloister.cli.trust import trust_from

    bundles = [Path(name) for name in environment.get(TRUST_SIMULATED, "").split(":") if name]
    for bundle in bundles:
        if not bundle.is_file():
            raise InputError(
                f"{TRUST_SIMULATED}: {bundle}: no such file",
                hint=f"make it where the enclave runs: cloister platform export {bundle}",
            )
    return trust_from(tuple(bundles), (), environment.get(PCCS, "intel"))
