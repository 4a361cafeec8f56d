"""The ``RA_TLS_*`` variables by which Gramine's verifiers learn whom to accept, as a policy.

Gramine's rules are the strict ones: all four measurements must be set, ``any`` is said and not
meant, and a tolerance is the digit 1 and nothing else. Stricter here: numbers must be numbers, and
neither debug enclaves nor collateral that has run out are ever accepted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from cloister.attestation.evidence import Evidence
from cloister.attestation.policy import (
    IDENTITY,
    Policy,
    TcbStatus,
    all_of,
    every,
    one_of,
)
from cloister.attestation.verdict import Check
from cloister.errors import InputError, WrongMeasurementError, WrongSignerError

MRENCLAVE = "RA_TLS_MRENCLAVE"
MRSIGNER = "RA_TLS_MRSIGNER"
ISV_PROD_ID = "RA_TLS_ISV_PROD_ID"
ISV_SVN = "RA_TLS_ISV_SVN"
MEASUREMENTS = (MRSIGNER, MRENCLAVE, ISV_PROD_ID, ISV_SVN)
"""In the order in which Gramine asks for them."""
ALLOW_OUTDATED = "RA_TLS_ALLOW_OUTDATED_TCB_INSECURE"
ALLOW_HW_CONFIG = "RA_TLS_ALLOW_HW_CONFIG_NEEDED"
ALLOW_SW_HARDENING = "RA_TLS_ALLOW_SW_HARDENING_NEEDED"
ALLOW_DEBUG = "RA_TLS_ALLOW_DEBUG_ENCLAVE_INSECURE"
ANY = "any"

_TOLERANCES: dict[str, frozenset[str]] = {
    "UpToDate": frozenset(),
    "OutOfDate": frozenset({ALLOW_OUTDATED}),
    "ConfigurationNeeded": frozenset({ALLOW_HW_CONFIG}),
    "OutOfDateConfigurationNeeded": frozenset({ALLOW_OUTDATED, ALLOW_HW_CONFIG}),
    "SWHardeningNeeded": frozenset({ALLOW_SW_HARDENING}),
    "ConfigurationAndSWHardeningNeeded": frozenset({ALLOW_HW_CONFIG, ALLOW_SW_HARDENING}),
}
"""Each acceptable status and the variables that must allow it."""


@dataclasses.dataclass(frozen=True)
class RaTlsMeasurements:
    """The four measurements; None is ``any``.

    Attributes:
        mr_enclave: 32 bytes.
        mr_signer: 32 bytes.
        isv_prod_id: the product number.
        isv_svn: the lowest accepted security version.
    """

    mr_enclave: bytes | None
    mr_signer: bytes | None
    isv_prod_id: int | None
    isv_svn: int | None
    names = IDENTITY

    @property
    def accepts_anyone(self) -> bool:
        """Whether neither enclave nor signer is named, so that any program at all is accepted."""
        return self.mr_enclave is None and self.mr_signer is None

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        words = (
            ("MRENCLAVE", self.mr_enclave.hex() if self.mr_enclave else None),
            ("MRSIGNER", self.mr_signer.hex() if self.mr_signer else None),
            ("product id", self.isv_prod_id),
            ("SVN at least", self.isv_svn),
        )
        named = [f"{name} {value}" for name, value in words if value is not None]
        return ", ".join(named) or "any enclave at all"

    def verify(self, evidence: Evidence) -> Check:
        """Compare what is named; a TDX quote has none of it and fails."""
        report = evidence.sgx
        if report is None:
            return Check("RA_TLS_*", False, "a TDX quote", self.describe(), WrongMeasurementError)
        checks = [Check("kind of quote", True, "SGX", "SGX")]
        if self.mr_enclave is not None:
            accepted = {self.mr_enclave}
            checks.append(one_of("MRENCLAVE", report.mr_enclave, accepted, WrongMeasurementError))
        if self.mr_signer is not None:
            checks.append(one_of("MRSIGNER", report.mr_signer, {self.mr_signer}, WrongSignerError))
        for name, found, wanted, passed in (
            ("ISVPRODID", report.isv_prod_id, self.isv_prod_id, int.__eq__),
            ("ISVSVN", report.isv_svn, self.isv_svn, int.__ge__),
        ):
            if wanted is not None:
                good = passed(found, wanted)
                checks.append(Check(name, good, str(found), str(wanted), WrongSignerError))
        return every("RA_TLS_*", checks)


def is_set(environment: Mapping[str, str]) -> bool:
    """Tell whether any of the four measurements is set, so that all must be."""
    return any(name in environment for name in MEASUREMENTS)


def measurements(environment: Mapping[str, str]) -> RaTlsMeasurements:
    """Read the four measurements.

    Raises:
        InputError: one is not set, or malformed.
    """
    for name in MEASUREMENTS:
        if name not in environment:
            raise InputError(
                f"a required environment variable {name} is not set",
                hint=f"set {', '.join(MEASUREMENTS)}; `{ANY}` leaves one open",
            )
    return RaTlsMeasurements(
        mr_enclave=_digest(environment, MRENCLAVE),
        mr_signer=_digest(environment, MRSIGNER),
        isv_prod_id=_number(environment, ISV_PROD_ID),
        isv_svn=_number(environment, ISV_SVN),
    )


def with_tolerances(identity: Policy, environment: Mapping[str, str]) -> Policy:
    """Return ``identity`` together with the TCB statuses that the variables allow.

    Raises:
        InputError: they would allow debug enclaves.
    """
    if environment.get(ALLOW_DEBUG) == "1":
        raise InputError(
            f"{ALLOW_DEBUG}: debug enclaves are never accepted",
            hint="anyone can read a debug enclave's memory; build without sgx.debug",
        )
    allowed = {name for name in environment if environment[name] == "1"}
    statuses = [status for status, needed in _TOLERANCES.items() if needed <= allowed]
    return all_of(identity, TcbStatus(*statuses))


def _digest(environment: Mapping[str, str], name: str) -> bytes | None:
    text = environment[name]
    if text == ANY:
        return None
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise InputError(f"{name}: expected 64 hex digits, or `{ANY}`")
    return bytes.fromhex(text)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment[name]
    if text == ANY:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 0xFFFF:
        raise InputError(f"{name}: expected a number of at most 65535, or `{ANY}`")
    return int(text)
