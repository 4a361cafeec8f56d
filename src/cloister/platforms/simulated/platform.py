"""The simulated platform and its enclaves, behind the interfaces of all platforms. SIMULATED."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import PlatformError
from cloister.files import data_home
from cloister.platforms.base import SealingPolicy
from cloister.platforms.simulated.cpu import Processor, target_info_of
from cloister.platforms.simulated.fused import read_fused
from cloister.platforms.simulated.measured import Measurements
from cloister.sgx.keys import (
    SEAL_FLAGS_MASK,
    SEAL_MISC_MASK,
    SEAL_XFRM_MASK,
    EnclaveIdentity,
    KeyName,
    KeyPolicy,
    KeyRequest,
)
from cloister.sgx.sigstruct import Sigstruct

if TYPE_CHECKING:
    from cloister.attestation.anchors import TrustAnchor
    from cloister.attestation.bundle import SimulatedBundle
    from cloister.platforms.simulated.collateral import Conditions
    from cloister.platforms.simulated.device import DeviceStore
    from cloister.platforms.simulated.quoting import QuotingEnclave

_POLICIES = {
    SealingPolicy.MRENCLAVE: KeyPolicy.MRENCLAVE,
    SealingPolicy.MRSIGNER: KeyPolicy.MRSIGNER,
}


def utc_now() -> datetime.datetime:
    """Return the present time, aware."""
    return datetime.datetime.now(datetime.timezone.utc)


class SimulatedPlatform:
    """A machine with a software processor.

    Args:
        directory: where the device's keys are, or will be made.
        clock: gives the present time (aware).
    """

    name = "simulated"
    simulated = True
    description = "SIMULATED processor: for development and tests; protects nothing"

    def __init__(
        self, directory: Path, *, clock: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        self._directory = directory
        self._clock = clock

    @property
    def _store(self) -> DeviceStore:
        from cloister.platforms.simulated.device import DeviceStore

        return DeviceStore(self._directory)

    @classmethod
    def of_this_machine(cls) -> SimulatedPlatform:
        """Return the one whose keys are in the user's data directory."""
        return cls(data_home() / "simulated-platform")

    def start(
        self,
        *,
        manifest: bytes,
        sigstruct: bytes,
        image: bytes,
        enclave_size: int,
        max_threads: int,
        edmm: bool,
    ) -> SimulatedEnclave:
        """Measure and start an enclave; see :meth:`cloister.platforms.base.Platform.start`."""
        signed = Sigstruct.unpack(sigstruct)
        fused = read_fused(self._directory) or self._store.open(self._clock()).device.fused
        mrenclave = Measurements(self._directory / "measured", fused.seal).of(
            manifest, image, enclave_size=enclave_size, max_threads=max_threads, edmm=edmm
        )
        processor = Processor(fused=fused, report_key_id=secrets.token_bytes(32))
        identity = processor.einit(signed, measured=mrenclave)
        return SimulatedEnclave(identity, processor, lambda: self._start_quoting(processor))

    def _start_quoting(self, processor: Processor) -> QuotingEnclave:
        from cloister.platforms.simulated.quoting import QuotingEnclave

        certified = self._store.open(self._clock())
        certified.device.fused.wipe()  # a second copy
        return QuotingEnclave(processor, certified.device.pck_key, certified.chain.to_pem())

    def trust_anchor(self) -> TrustAnchor:
        """Return this device's root, for verifiers that are told to trust it."""
        return self.export().anchor

    def collateral_until(self) -> datetime.datetime:
        """Return when the published collateral runs out."""
        return self._store.open(self._clock()).issued.next_update

    def export(self, conditions: Conditions | None = None) -> SimulatedBundle:
        """Return root and collateral for an owner who wants to trust this platform.

        Args:
            conditions: rehearse a bad day; None exports what was published.
        """
        from cloister.attestation.anchors import TrustAnchor
        from cloister.attestation.bundle import SimulatedBundle

        now = self._clock()
        certified = self._store.open(now)
        issued = certified.issued
        if conditions is not None:
            issued = certified.device.issue_collateral(certified.chain, now, conditions)
        return SimulatedBundle(TrustAnchor(certified.device.authority.root), issued.collateral)


class SimulatedEnclave:
    """One running enclave on the software processor; see :class:`cloister.platforms.base.Enclave`.

    Closing it wipes the fused keys from memory. The certification key is an OpenSSL object that
    Python cannot wipe; it is released.

    Args:
        identity: who it is.
        processor: where it runs.
        start_quoting: starts the quoting enclave there, when the first quote is asked for.
    """

    simulated = True
    event_log = b""

    def __init__(
        self,
        identity: EnclaveIdentity,
        processor: Processor,
        start_quoting: Callable[[], QuotingEnclave],
    ) -> None:
        self._identity = identity
        self._processor: Processor | None = processor
        self._start_quoting = start_quoting
        self._quoting: QuotingEnclave | None = None

    @property
    def mrenclave(self) -> bytes:
        """Measurement, 32 bytes."""
        return self._identity.mr_enclave

    @property
    def mrsigner(self) -> bytes:
        """SHA-256 of the signer's public modulus, 32 bytes."""
        return self._identity.mr_signer

    @property
    def isv_prod_id(self) -> int:
        """Product number that the signer gave (16 bits)."""
        return self._identity.isv_prod_id

    @property
    def isv_svn(self) -> int:
        """Security version that the signer gave (16 bits)."""
        return self._identity.isv_svn

    @property
    def debug(self) -> bool:
        """Whether the enclave was signed for debug mode."""
        return self._identity.debug

    def target_info(self) -> bytes:
        """Return this enclave's own TARGETINFO (512 bytes)."""
        return target_info_of(self._identity)

    def report(self, target_info: bytes, report_data: bytes) -> bytes:
        """Return a REPORT (432 bytes) that the enclave ``target_info`` can check."""
        return self._cpu().ereport(self._identity, target_info, report_data)

    def verify_report(self, report: bytes) -> None:
        """Check that ``report`` was made on this processor for this enclave.

        Raises:
            ReportMacError: it was not.
        """
        self._cpu().verify_report(self._identity, report)

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote with these 64 bytes."""
        self._cpu()
        if self._quoting is None:
            self._quoting = self._start_quoting()
        return self._quoting.quote(self.report(self._quoting.target_info(), report_data))

    def sealing_key(
        self,
        policy: SealingPolicy,
        *,
        flags_mask: int | None = None,
        xfrm_mask: int | None = None,
        misc_mask: int | None = None,
    ) -> bytes:
        """Return the 16-byte sealing key of the policy; None takes the usual mask."""
        processor = self._cpu()
        request = KeyRequest(
            key_name=KeyName.SEAL,
            policy=_POLICIES[policy],
            isv_svn=self._identity.isv_svn,
            cpu_svn=processor.cpu_svn,
            flags_mask=SEAL_FLAGS_MASK if flags_mask is None else flags_mask,
            xfrm_mask=SEAL_XFRM_MASK if xfrm_mask is None else xfrm_mask,
            misc_mask=SEAL_MISC_MASK if misc_mask is None else misc_mask,
            config_svn=self._identity.config_svn,
        )
        return processor.egetkey(self._identity, request)

    def close(self) -> None:
        """End the enclave: wipe its keys; every later call fails."""
        if self._processor is not None:
            self._processor.fused.wipe()
        self._processor = None
        self._quoting = None

    def _cpu(self) -> Processor:
        if self._processor is None:
            raise PlatformError("the enclave is closed")
        return self._processor
