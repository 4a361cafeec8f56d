"""The TDX platform and its enclaves, behind the interfaces of all platforms.

The program's identity is measured and signed exactly as for SGX; in place of the processor, this
checks the signature and extends RTMR 3 by the identity before anybody is asked for a key. Quotes
speak of the whole virtual machine; the event log beside them says which program.
"""

from __future__ import annotations

from typing import NoReturn

from cloister.errors import (
    EnclaveStartError,
    MalformedQuoteError,
    MeasurementMismatchError,
    PlatformError,
    UnsupportedByPlatformError,
)
from cloister.platforms.base import SealingPolicy
from cloister.platforms.tdx.programs import Programs
from cloister.platforms.tdx.register import register_of_this_machine
from cloister.platforms.tdx.reports import Reports
from cloister.sgx.measurement import measure
from cloister.sgx.quote import TdReport, parse_quote
from cloister.sgx.sigstruct import Sigstruct
from cloister.tdx.event_log import ProgramEvent, encode_log, replay


class TdxPlatform:
    """A TDX virtual machine, seen from inside.

    Args:
        reports: where quotes come from.
        programs: what has been started, and the register that says so.
    """

    name = "tdx"
    simulated = False
    description = (
        "TDX virtual machine: its memory is encrypted against the host's administrator; whoever is"
        " root inside of it is trusted"
    )

    def __init__(self, reports: Reports, programs: Programs) -> None:
        self._reports = reports
        self._programs = programs

    @classmethod
    def of_this_machine(cls) -> TdxPlatform:
        """Return the one of the kernel that runs this."""
        return cls(Reports(), Programs(register_of_this_machine()))

    def start(
        self,
        *,
        manifest: bytes,
        sigstruct: bytes,
        image: bytes,
        enclave_size: int,
        max_threads: int,
        edmm: bool,
    ) -> TdxEnclave:
        """Measure and start an enclave; see :meth:`cloister.platforms.base.Platform.start`."""
        signed = Sigstruct.unpack(sigstruct)
        signed.verify()
        measured = measure(
            manifest, image, enclave_size=enclave_size, max_threads=max_threads, edmm=edmm
        ).mrenclave
        if measured != signed.mr_enclave:
            raise MeasurementMismatchError(
                f"measured MRENCLAVE {measured.hex()},"
                f" but SIGSTRUCT was signed for {signed.mr_enclave.hex()}"
            )
        event = ProgramEvent(
            mr_enclave=measured,
            mr_signer=signed.mr_signer,
            flags=signed.flags,
            isv_prod_id=signed.isv_prod_id,
            isv_svn=signed.isv_svn,
        )
        if event.debug:
            raise EnclaveStartError(
                "sgx.debug = true: no owner releases keys to it, and TDX has no debug enclaves",
                hint="build without sgx.debug, or run on the simulated platform",
            )
        self._programs.record(event)
        return TdxEnclave(event, self._reports, self._programs)


class TdxEnclave:
    """A program that was measured into RTMR 3; see :class:`cloister.platforms.base.Enclave`."""

    simulated = False
    debug = False

    def __init__(self, event: ProgramEvent, reports: Reports, programs: Programs) -> None:
        self._event = event
        self._reports: Reports | None = reports
        self._programs = programs

    @property
    def mrenclave(self) -> bytes:
        """Measurement, 32 bytes."""
        return self._event.mr_enclave

    @property
    def mrsigner(self) -> bytes:
        """SHA-256 of the signer's public modulus, 32 bytes."""
        return self._event.mr_signer

    @property
    def isv_prod_id(self) -> int:
        """Product number that the signer gave (16 bits)."""
        return self._event.isv_prod_id

    @property
    def isv_svn(self) -> int:
        """Security version that the signer gave (16 bits)."""
        return self._event.isv_svn

    @property
    def event_log(self) -> bytes:
        """What must lie beside a quote for others to read it."""
        with self._programs.unchanged() as events:
            return encode_log(events)

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote of the virtual machine with these 64 bytes.

        Raises:
            PlatformError: the kernel gave none, or one that is not about this moment.
        """
        if self._reports is None:
            raise PlatformError("the enclave is closed")
        with self._programs.unchanged() as events:
            quote = self._reports.quote(report_data)
        try:
            report = parse_quote(quote).report
        except MalformedQuoteError as error:
            raise PlatformError(f"the kernel's quote: {error.message}") from error
        if not isinstance(report, TdReport):
            raise PlatformError("the kernel's quote is one of SGX, expected TDX")
        if report.report_data != report_data:
            raise PlatformError("the kernel's quote is for other report data: not for this request")
        if report.rtmr3 != replay(events):
            raise PlatformError(
                f"the kernel's quote has RTMR 3 {report.rtmr3.hex()}, expected"
                f" {replay(events).hex()}, which is what this machine has logged"
            )
        return quote

    def target_info(self) -> bytes:
        """Fail: TDX has no reports between enclaves."""
        self._no("TARGETINFO")

    def report(self, target_info: bytes, report_data: bytes) -> bytes:
        """Fail: TDX has no reports between enclaves."""
        self._no("reports to other enclaves (REPORT)")

    def verify_report(self, report: bytes) -> None:
        """Fail: TDX has no reports between enclaves."""
        self._no("reports to other enclaves (REPORT)")

    def sealing_key(
        self,
        policy: SealingPolicy,
        *,
        flags_mask: int | None = None,
        xfrm_mask: int | None = None,
        misc_mask: int | None = None,
    ) -> bytes:
        """Fail: TDX has no sealing keys."""
        self._no(f"sealing keys (_sgx_{policy.value})")

    def close(self) -> None:
        """End the enclave: every later call fails. What was measured stays until the next boot."""
        self._reports = None

    def _no(self, what: str) -> NoReturn:
        raise UnsupportedByPlatformError(
            f"a TDX virtual machine has no {what}",
            hint="use a key from a key server, which knows the machine by its quote",
        )
