"""The simulated provisioning service: what verifiers need to judge quotes of a device. SIMULATED.

TCB info and QE identity follow the Intel SGX Provisioning Certification Service API, version 4
(models "TCB info v3" and "Enclave identity v2"). A :class:`Conditions` other than the default
rehearses a bad day: an outdated TCB, a revoked certificate, a revoked quoting enclave.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attestation.collateral import Collateral
from cloister.platforms.simulated import authority as ca
from cloister.sgx.keys import EnclaveIdentity

LIFETIME = datetime.timedelta(days=30)
"""How long collateral holds, as long as Intel's."""
BACKDATE = datetime.timedelta(hours=1)
"""Issue dates lie this far back, so that a verifier whose clock is a little late accepts them."""
EVALUATION_NUMBER = 17


class Conditions(NamedTuple):
    """What the collateral says about the device.

    Attributes:
        tcb_status: status of the device's TCB level.
        advisories: advisories of that level.
        qe_status: status of the quoting enclave's version.
        pck_revoked: whether the device's PCK certificate is on the revocation list.
        lifetime: from the time of issue to the next update.
    """

    tcb_status: str = "UpToDate"
    advisories: Sequence[str] = ()
    qe_status: str = "UpToDate"
    pck_revoked: bool = False
    lifetime: datetime.timedelta = LIFETIME


class PckChain(NamedTuple):
    """The certificates that a device's quotes carry."""

    pck: x509.Certificate
    pck_ca: x509.Certificate
    root: x509.Certificate

    def to_pem(self) -> str:
        """Return them as PEM, leaf first."""
        return ca.chain_pem(self.pck, self.pck_ca, self.root)

    @classmethod
    def from_pem(cls, text: str) -> PckChain:
        """Read them from PEM, leaf first."""
        return cls(*x509.load_pem_x509_certificates(text.encode()))

    def holds_for(self, period: datetime.timedelta, *, now: datetime.datetime) -> bool:
        """Tell whether the device's certificate is valid now and stays so for ``period``."""
        pck = self.pck
        return pck.not_valid_before_utc <= now and now + period <= pck.not_valid_after_utc


class Issued(NamedTuple):
    """Collateral, and the time for which it was issued."""

    collateral: Collateral
    this_update: datetime.datetime
    next_update: datetime.datetime

    def holds_for(self, period: datetime.timedelta, *, now: datetime.datetime) -> bool:
        """Tell whether it is valid now and stays so for ``period``."""
        return self.this_update <= now and now + period <= self.next_update


def issue_chain(
    authority: ca.Authority,
    *,
    device: ca.PckIdentity,
    pck_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
) -> PckChain:
    """Issue the device's PCK certificate, and that of the CA above it.

    Args:
        authority: the simulated manufacturer.
        device: what the PCK certificate states.
        pck_key: the device's provisioning certification key.
        now: time of issue (aware).
    """
    not_before = now.replace(microsecond=0) - BACKDATE
    pck_ca = ca.issue_pck_ca(authority, not_before=not_before)
    pck = ca.issue_pck(authority, pck_ca, pck_key, device, not_before=not_before)
    return PckChain(pck, pck_ca, authority.root)


def issue_collateral(
    authority: ca.Authority,
    chain: PckChain,
    *,
    device: ca.PckIdentity,
    quoting_enclave: EnclaveIdentity,
    now: datetime.datetime,
    conditions: Conditions | None = None,
) -> Issued:
    """Issue the collateral of a device whose certificates exist.

    Args:
        authority: the simulated manufacturer.
        chain: the device's certificates.
        device: what its PCK certificate states.
        quoting_enclave: the enclave whose signatures count.
        now: time of issue (aware).
        conditions: what to say about the device; None says that all is well.
    """
    conditions = conditions or Conditions()
    now = now.replace(microsecond=0)
    issued, next_update = now - BACKDATE, now + conditions.lifetime
    dates = {"issueDate": _rfc3339(issued), "nextUpdate": _rfc3339(next_update)}
    period = {"this_update": issued, "next_update": next_update}
    tcb_info = _compact(_tcb_info(device, conditions, dates))
    qe_identity = _compact(_qe_identity(quoting_enclave, conditions, dates))
    signer = ca.issue_tcb_signer(authority, not_before=issued)
    signer_chain = ca.chain_pem(signer, authority.root)
    revoked = [chain.pck.serial_number] if conditions.pck_revoked else []
    collateral = Collateral(
        pck_crl_issuer_chain=ca.chain_pem(chain.pck_ca, authority.root),
        root_ca_crl=ca.issue_crl(authority.root, authority.root_key, revoked=[], **period),
        pck_crl=ca.issue_crl(chain.pck_ca, authority.pck_ca_key, revoked=revoked, **period),
        tcb_info_issuer_chain=signer_chain,
        tcb_info=tcb_info,
        tcb_info_signature=sign_raw(authority.tcb_signer_key, tcb_info.encode()),
        qe_identity_issuer_chain=signer_chain,
        qe_identity=qe_identity,
        qe_identity_signature=sign_raw(authority.tcb_signer_key, qe_identity.encode()),
    )
    return Issued(collateral, issued, next_update)


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _tcb_info(
    device: ca.PckIdentity, conditions: Conditions, dates: dict[str, str]
) -> dict[str, Any]:
    return {
        "id": "SGX",
        "version": 3,
        **dates,
        "fmspc": device.fmspc.hex().upper(),
        "pceId": device.pce_id.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "tcbLevels": [
            {
                "tcb": {
                    "sgxtcbcomponents": [{"svn": svn} for svn in device.cpu_svn],
                    "pcesvn": device.pce_svn,
                },
                "tcbDate": dates["issueDate"],
                "tcbStatus": conditions.tcb_status,
                "advisoryIDs": list(conditions.advisories),
            }
        ],
    }


def _qe_identity(
    enclave: EnclaveIdentity, conditions: Conditions, dates: dict[str, str]
) -> dict[str, Any]:
    # The debug bit (0x2) is inside the mask, so that a debug quoting enclave never matches; XFRM
    # is left out, as in Intel's own identity.
    return {
        "id": "QE",
        "version": 2,
        **dates,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "miscselect": enclave.misc_select.to_bytes(4, "little").hex().upper(),
        "miscselectMask": "FFFFFFFF",
        "attributes": enclave.flags.to_bytes(8, "little").hex().upper() + "0" * 16,
        "attributesMask": "FBFFFFFFFFFFFFFF" + "0" * 16,
        "mrsigner": enclave.mr_signer.hex().upper(),
        "isvprodid": enclave.isv_prod_id,
        "tcbLevels": [
            {
                "tcb": {"isvsvn": enclave.isv_svn},
                "tcbDate": dates["issueDate"],
                "tcbStatus": conditions.qe_status,
            }
        ],
    }


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return the ECDSA-SHA256 signature of ``data`` as r and s, 32 big-endian bytes each.

    The same data has the same signature (RFC 6979). A real quoting enclave's key is certified once
    and shows the same bytes in every quote; so does the simulated one's, which keeps nothing.
    """
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(data, algorithm))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _rfc3339(time: datetime.datetime) -> str:
    return time.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
