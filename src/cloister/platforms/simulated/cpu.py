"""A software processor: starts enclaves, makes reports, derives keys. SIMULATED.

It follows EINIT, EREPORT and EGETKEY of the Intel SDM, vol. 3D, chapter 40, as far as a program
and its peers can see. What it cannot do is keep anyone with access to this machine away from the
enclave's memory or from its own fused keys; that is why everything it makes is called SIMULATED.
"""

from __future__ import annotations

import dataclasses

from cloister.errors import EnclaveStartError, MeasurementMismatchError, ReportMacError
from cloister.sgx.keys import (
    EnclaveIdentity,
    FusedKeys,
    KeyName,
    KeyRequest,
    derive_key,
    report_key_for_target,
)
from cloister.sgx.report import (
    REPORT_DATA_SIZE,
    Attribute,
    Report,
    ReportBody,
    TargetInfo,
    report_mac,
)
from cloister.sgx.sigstruct import Sigstruct

CPU_SVN = bytes((4, 4, 2, 2, 255, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
"""The simulated processor's CPUSVN, one component a byte; the TCB info calls it UpToDate."""

XFRM_LEGACY = 0x3
_FORBIDDEN = Attribute.PROVISION_KEY | Attribute.EINITTOKEN_KEY


@dataclasses.dataclass(frozen=True)
class Processor:
    """A software CPU.

    Attributes:
        fused: the device's own keys.
        report_key_id: 32 random bytes, fresh at each power-on (CR_REPORT_KEYID).
        cpu_svn: 16 bytes.
    """

    fused: FusedKeys
    report_key_id: bytes
    cpu_svn: bytes = CPU_SVN

    def einit(self, sigstruct: Sigstruct, *, measured: bytes) -> EnclaveIdentity:
        """Start an enclave whose pages were measured as ``measured`` (32 bytes).

        Raises:
            EnclaveStartError: wrong signature, or attributes that are not permitted.
            MeasurementMismatchError: the signer signed another measurement.
        """
        sigstruct.verify()
        if measured != sigstruct.mr_enclave:
            raise MeasurementMismatchError(
                f"EINIT: measured MRENCLAVE {measured.hex()},"
                f" but SIGSTRUCT was signed for {sigstruct.mr_enclave.hex()}"
            )
        self._check_attributes(sigstruct)
        return EnclaveIdentity(
            mr_enclave=measured,
            mr_signer=sigstruct.mr_signer,
            flags=sigstruct.flags | Attribute.INIT,
            xfrm=sigstruct.xfrm,
            misc_select=sigstruct.misc_select,
            isv_prod_id=sigstruct.isv_prod_id,
            isv_svn=sigstruct.isv_svn,
            isv_ext_prod_id=sigstruct.isv_ext_prod_id,
            isv_family_id=sigstruct.isv_family_id,
        )

    def _check_attributes(self, sigstruct: Sigstruct) -> None:
        flags = sigstruct.flags
        if not flags & Attribute.MODE64:
            raise EnclaveStartError("EINIT: ATTRIBUTES.MODE64 is not set; only 64 bit is supported")
        if flags & _FORBIDDEN:
            raise EnclaveStartError(
                f"EINIT: ATTRIBUTES {flags:#x} ask for the provisioning or launch key",
                hint="only the platform's own enclaves may; sign without these attributes",
            )
        if sigstruct.xfrm & XFRM_LEGACY != XFRM_LEGACY:
            raise EnclaveStartError(
                f"EINIT: XFRM {sigstruct.xfrm:#x} lacks x87 and SSE (bits 0 and 1)"
            )

    def ereport(self, identity: EnclaveIdentity, target_info: bytes, report_data: bytes) -> bytes:
        """Return a REPORT (432 bytes) about ``identity`` for the target (EREPORT).

        Args:
            identity: the running enclave.
            target_info: 512 bytes.
            report_data: 64 bytes.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise ValueError(f"report data has {len(report_data)} bytes, expected 64")
        body = self.report_body(identity, report_data).pack()
        key = report_key_for_target(
            self.fused,
            TargetInfo.unpack(target_info),
            key_id=self.report_key_id,
            cpu_svn=self.cpu_svn,
        )
        return Report(body=body, key_id=self.report_key_id, mac=report_mac(body, key)).pack()

    def report_body(self, identity: EnclaveIdentity, report_data: bytes) -> ReportBody:
        """Return what this processor says about ``identity``."""
        return ReportBody(
            cpu_svn=self.cpu_svn,
            misc_select=identity.misc_select,
            cet_attributes=identity.cet_attributes,
            isv_ext_prod_id=identity.isv_ext_prod_id,
            flags=identity.flags,
            xfrm=identity.xfrm,
            mr_enclave=identity.mr_enclave,
            mr_signer=identity.mr_signer,
            config_id=identity.config_id,
            isv_prod_id=identity.isv_prod_id,
            isv_svn=identity.isv_svn,
            config_svn=identity.config_svn,
            isv_family_id=identity.isv_family_id,
            report_data=report_data,
        )

    def egetkey(self, identity: EnclaveIdentity, request: KeyRequest) -> bytes:
        """Return the key (16 bytes) that the enclave ``identity`` asks for (EGETKEY).

        Raises:
            KeyRequestError: the request is not permitted.
        """
        return derive_key(self.fused, identity, request, cpu_svn=self.cpu_svn)

    def verify_report(self, identity: EnclaveIdentity, report: bytes) -> ReportBody:
        """Check, inside the enclave ``identity``, a report that was made for it.

        Raises:
            ReportMacError: made elsewhere, for another enclave, or changed.
        """
        parsed = Report.unpack(report)
        request = KeyRequest(key_name=KeyName.REPORT, key_id=parsed.key_id)
        if not parsed.mac_is_valid(self.egetkey(identity, request)):
            raise ReportMacError("REPORT: the MAC is wrong")
        return ReportBody.unpack(parsed.body)


def target_info_of(identity: EnclaveIdentity) -> bytes:
    """Return the TARGETINFO (512 bytes) by which others aim reports at ``identity``."""
    return TargetInfo(
        mr_enclave=identity.mr_enclave,
        flags=identity.flags,
        xfrm=identity.xfrm,
        cet_attributes=identity.cet_attributes,
        config_svn=identity.config_svn,
        misc_select=identity.misc_select,
        config_id=identity.config_id,
    ).pack()
