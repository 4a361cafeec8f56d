"""The interface between an enclave's runtime and the platform below it.

Nothing outside this package may know which platform runs. Two truths are always visible:
``simulated`` on every platform and enclave, and the text that says so.
"""

from __future__ import annotations

import enum
import os
from typing import Protocol

from cloister.errors import InputError, PlatformError

PLATFORM_VARIABLE = "CLOISTER_PLATFORM"
PLATFORMS = ("gramine", "tdx", "simulated", "gramine-direct")
HARDWARE = ("gramine", "tdx")
UNDER_GRAMINE = ("gramine", "gramine-direct")
"""Where programs run by Gramine's runtime in place of ours."""


class SealingPolicy(enum.Enum):
    """Who may have the same sealing key again."""

    MRENCLAVE = "mrenclave"
    MRSIGNER = "mrsigner"


class Enclave(Protocol):
    """One running enclave, seen from inside: what its instructions EREPORT and EGETKEY give."""

    @property
    def simulated(self) -> bool:
        """Whether no hardware protects this enclave."""
        ...

    @property
    def mrenclave(self) -> bytes:
        """Measurement, 32 bytes."""
        ...

    @property
    def mrsigner(self) -> bytes:
        """SHA-256 of the signer's public modulus, 32 bytes."""
        ...

    @property
    def isv_prod_id(self) -> int:
        """Product number that the signer gave (16 bits)."""
        ...

    @property
    def isv_svn(self) -> int:
        """Security version that the signer gave (16 bits)."""
        ...

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory may be read from outside."""
        ...

    @property
    def event_log(self) -> bytes:
        """What must lie beside a quote for verifiers to read it; empty where nothing must."""
        ...

    def target_info(self) -> bytes:
        """Return this enclave's own TARGETINFO (512 bytes).

        Raises:
            UnsupportedByPlatformError: the platform has no reports between enclaves.
        """
        ...

    def report(self, target_info: bytes, report_data: bytes) -> bytes:
        """Return a REPORT (432 bytes) that the enclave ``target_info`` (512) can check.

        Args:
            target_info: TARGETINFO of the enclave that is to verify the report, 512 bytes.
            report_data: 64 bytes of the caller's choice.

        Raises:
            UnsupportedByPlatformError: the platform has no reports between enclaves.
        """
        ...

    def verify_report(self, report: bytes) -> None:
        """Check that ``report`` (432 bytes) was made on this processor for this enclave.

        Raises:
            ReportMacError: it was not.
        """
        ...

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote with 64 bytes of the caller's choice, for a verifier elsewhere."""
        ...

    def sealing_key(
        self,
        policy: SealingPolicy,
        *,
        flags_mask: int | None = None,
        xfrm_mask: int | None = None,
        misc_mask: int | None = None,
    ) -> bytes:
        """Return the 16-byte sealing key of the policy; None takes the usual mask.

        Args:
            policy: this enclave alone, or all of this signer's product with this SVN or newer.
            flags_mask: ATTRIBUTES.FLAGS bits that the key is bound to (64 bits).
            xfrm_mask: XFRM bits that the key is bound to (64 bits).
            misc_mask: MISCSELECT bits that the key is bound to (32 bits).

        Raises:
            UnsupportedByPlatformError: the platform has no sealing keys.
        """
        ...

    def close(self) -> None:
        """End the enclave: forget its keys; every later call fails."""
        ...


class Platform(Protocol):
    """A machine that can start enclaves."""

    @property
    def name(self) -> str:
        """One word, e.g. ``simulated``."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind the enclaves of this platform."""
        ...

    @property
    def description(self) -> str:
        """One line for people; says SIMULATED where that is so."""
        ...

    def start(
        self,
        *,
        manifest: bytes,
        sigstruct: bytes,
        image: bytes,
        enclave_size: int,
        max_threads: int,
        edmm: bool,
    ) -> Enclave:
        """Measure and start an enclave, as ECREATE, EADD, EEXTEND and EINIT do.

        Args:
            manifest: the signed manifest's bytes.
            sigstruct: SIGSTRUCT, 1808 bytes.
            image: the measured runtime image (an ELF file).
            enclave_size: ``sgx.enclave_size`` in bytes.
            max_threads: ``sgx.max_threads``.
            edmm: ``sgx.edmm_enable``.

        Raises:
            MeasurementMismatchError: the files are not the signed ones.
            EnclaveStartError: the signature is wrong, or an attribute is not permitted.
            PlatformError: the platform does not work.
        """
        ...


def choose_name(name: str | None = None, *, require_hardware: bool = False) -> str:
    """Return the name of the platform on which a program is to run.

    Args:
        name: one of :data:`PLATFORMS`; None takes ``$CLOISTER_PLATFORM``, else the best here: SGX
            through Gramine, TDX, and the SIMULATED one where there is neither.
        require_hardware: refuse the SIMULATED platform and ``gramine-direct``.

    Raises:
        InputError: no platform of that name.
        PlatformError: hardware is required, and there is none, or another was named.
    """
    named = name or os.environ.get(PLATFORM_VARIABLE)
    if named is not None and named not in PLATFORMS:
        raise InputError(
            f"platform {named}: unknown; there are: {', '.join(PLATFORMS)}",
            hint=f"leave out --platform, or unset {PLATFORM_VARIABLE}",
        )
    chosen = named or _best()
    if require_hardware and chosen not in HARDWARE:
        raise PlatformError(
            "hardware is required, but "
            + (
                "this machine has only the SIMULATED platform"
                if named is None
                else f"platform {chosen} is none"
            ),
            hint="run on a machine with SGX, or in a TDX virtual machine; cloister doctor tells"
            " what this one has",
        )
    return chosen


def protection_of(name: str) -> str:
    """Return one line on what a platform (not the simulated one) protects against."""
    from cloister.platforms.gramine.run import DIRECT_PROTECTS, SGX_PROTECTS
    from cloister.platforms.tdx.platform import TdxPlatform

    lines = {
        "gramine": SGX_PROTECTS,
        "gramine-direct": DIRECT_PROTECTS,
        "tdx": TdxPlatform.description,
    }
    return lines[name]


def _best() -> str:
    from cloister.platforms.gramine.presence import sgx_is_here
    from cloister.platforms.tdx.presence import tdx_is_here

    if sgx_is_here():
        return "gramine"
    return "tdx" if tdx_is_here() else "simulated"


def choose_platform(name: str | None = None) -> Platform:
    """Return a platform by name, or the best one of this machine on which our runtime runs.

    Args:
        name: ``simulated`` or ``tdx``; None takes ``$CLOISTER_PLATFORM``, else the best here.

    Raises:
        InputError: no platform of that name, or one where Gramine runs the programs.
    """
    named = name or os.environ.get(PLATFORM_VARIABLE)
    if named is not None and choose_name(named) in UNDER_GRAMINE:
        raise InputError(
            f"platform {named}: Gramine runs the programs there, by `cloister run`",
            hint="name another: simulated, tdx",
        )
    return _platform(named)


def _platform(name: str | None) -> Platform:
    from cloister.platforms.tdx.presence import tdx_is_here

    if name == "tdx" or (name is None and tdx_is_here()):
        from cloister.platforms.tdx.platform import TdxPlatform

        return TdxPlatform.of_this_machine()
    from cloister.platforms.simulated import SimulatedPlatform

    return SimulatedPlatform.of_this_machine()
