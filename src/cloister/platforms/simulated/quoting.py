"""The simulated quoting enclave: turns local reports into quotes (version 3). SIMULATED.

As with Intel's, the attestation key comes from the quoting enclave's own sealing key, and the
device's provisioning certification key (PCK) vouches for it by signing a report of the quoting
enclave that names the attestation key.
"""

from __future__ import annotations

import dataclasses
import hashlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.platforms.simulated.authority import PrivateKey, derive_private_key
from cloister.platforms.simulated.collateral import sign_raw
from cloister.platforms.simulated.cpu import Processor, target_info_of
from cloister.sgx import quote as q
from cloister.sgx.keys import EnclaveIdentity, KeyName, KeyPolicy, KeyRequest
from cloister.sgx.report import Attribute

PCE_SVN = 13

QUOTING_ENCLAVE = EnclaveIdentity(
    mr_enclave=hashlib.sha256(b"Cloister SIMULATED quoting enclave, version 1").digest(),
    mr_signer=hashlib.sha256(b"Cloister SIMULATED quoting enclave, signer").digest(),
    flags=Attribute.INIT | Attribute.MODE64 | Attribute.PROVISION_KEY,
    xfrm=0xE7,
    misc_select=0,
    isv_prod_id=1,
    isv_svn=8,
)


@dataclasses.dataclass(frozen=True)
class QuotingEnclave:
    """Signs reports that were made for it on the same processor.

    Attributes:
        processor: where it runs.
        pck_key: the device's provisioning certification key.
        pck_chain: PEM of its certificate and the issuers', leaf first.
    """

    processor: Processor
    pck_key: PrivateKey = dataclasses.field(repr=False)
    pck_chain: str = dataclasses.field(repr=False)

    def target_info(self) -> bytes:
        """Return the TARGETINFO (512 bytes) to which reports must be aimed."""
        return target_info_of(QUOTING_ENCLAVE)

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a REPORT (432 bytes) aimed at this enclave.

        Raises:
            ReportMacError: the report was not made here for this enclave.
        """
        body = self.processor.verify_report(QUOTING_ENCLAVE, report)
        signed = self._header().pack() + body.pack()
        key = self._attestation_key()
        public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        auth_data = bytes(32)
        qe_body = self.processor.report_body(
            QUOTING_ENCLAVE, q.qe_report_data(public, auth_data)
        ).pack()
        return q.pack_quote_v3(
            signed,
            q.QuoteSignature(
                signature=sign_raw(key, signed),
                attestation_key=public,
                qe_report=qe_body,
                qe_report_signature=sign_raw(self.pck_key, qe_body),
                qe_auth_data=auth_data,
                certification_type=q.CERTIFICATION_PEM_CHAIN,
                certification_data=self.pck_chain.encode(),
            ),
        )

    def _header(self) -> q.QuoteHeader:
        return q.QuoteHeader(
            version=3,
            attestation_key_type=q.ECDSA_P256,
            tee_type=q.TEE_SGX,
            qe_svn=QUOTING_ENCLAVE.isv_svn,
            pce_svn=PCE_SVN,
            # Verifiers accept no other vendor id; the root says that this is not Intel's.
            qe_vendor_id=q.INTEL_QE_VENDOR_ID,
            user_data=self._sealed(b"qe id")[:16] + bytes(4),
        )

    def _attestation_key(self) -> ec.EllipticCurvePrivateKey:
        return derive_private_key(self._sealed(b"attestation key"))

    def _sealed(self, purpose: bytes) -> bytes:
        request = KeyRequest(
            key_name=KeyName.SEAL,
            policy=KeyPolicy.MRSIGNER,
            isv_svn=QUOTING_ENCLAVE.isv_svn,
            cpu_svn=self.processor.cpu_svn,
            key_id=hashlib.sha256(b"quoting enclave: " + purpose).digest(),
        )
        return self.processor.egetkey(QUOTING_ENCLAVE, request)
