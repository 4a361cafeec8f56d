"""A simulated device whose every key is at hand, for tests that need bad quotes and collateral."""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attestation import Collateral, Verdict, verify_quote
from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.policy import MrEnclave, Policy
from cloister.platforms.simulated import authority as ca
from cloister.platforms.simulated.collateral import Conditions, PckChain, sign_raw
from cloister.platforms.simulated.cpu import Processor
from cloister.platforms.simulated.device import Certified, DeviceStore
from cloister.platforms.simulated.quoting import QUOTING_ENCLAVE, QuotingEnclave
from cloister.sgx.keys import EnclaveIdentity
from cloister.sgx.quote import (
    INTEL_QE_VENDOR_ID,
    TdReport,
    pack_quote_v3,
    parse_quote,
    qe_report_data,
)
from cloister.sgx.report import Attribute

PRODUCTION = EnclaveIdentity(
    mr_enclave=b"e" * 32,
    mr_signer=b"s" * 32,
    flags=Attribute.INIT | Attribute.MODE64,
    xfrm=3,
    misc_select=0,
    isv_prod_id=1,
    isv_svn=1,
)


@dataclasses.dataclass
class World:
    """A device whose every key is at hand."""

    directory: Path
    now: datetime.datetime

    @property
    def certified(self) -> Certified:
        return DeviceStore(self.directory).open(self.now)

    def quote(
        self, identity: EnclaveIdentity = PRODUCTION, *, report_data: bytes = bytes(64)
    ) -> bytes:
        """Quote an enclave of any kind, also of one that no processor would start."""
        certified = self.certified
        processor = Processor(fused=certified.device.fused, report_key_id=bytes(32))
        quoting = QuotingEnclave(processor, certified.device.pck_key, certified.chain.to_pem())
        return quoting.quote(processor.ereport(identity, quoting.target_info(), report_data))

    def collateral(self, conditions: Conditions | None = None) -> Collateral:
        certified = self.certified
        issued = certified.device.issue_collateral(certified.chain, self.now, conditions)
        return issued.collateral

    def edited(self, field: str, **changes: Any) -> Collateral:
        """Return collateral with fields of a JSON text changed, and signed again."""
        collateral = self.collateral()
        text = json.dumps(json.loads(getattr(collateral, field)) | changes)
        key = self.certified.device.authority.tcb_signer_key
        signature = sign_raw(key, text.encode())
        signed: dict[str, Any] = {field: text, f"{field}_signature": signature}
        return dataclasses.replace(collateral, **signed)

    @property
    def anchor(self) -> TrustAnchor:
        return TrustAnchor(self.certified.device.authority.root)

    def verify(
        self,
        quote: bytes | None = None,
        *,
        collateral: Collateral | None = None,
        now: datetime.datetime | None = None,
        policy: Policy | None = None,
        anchors: list[TrustAnchor] | None = None,
    ) -> Verdict:
        return verify_quote(
            self.quote() if quote is None else quote,
            collateral=collateral or self.collateral(),
            anchors=[self.anchor] if anchors is None else anchors,
            now=now or self.now,
            policy=policy or MrEnclave(PRODUCTION.mr_enclave),
        )


def with_chain(quote: bytes, chain: PckChain, root: x509.Certificate | None) -> bytes:
    """Return the quote with another root, or none, in the chain that it carries."""
    certificates = [chain.pck, chain.pck_ca, *([root] if root else [])]
    text = ca.chain_pem(*certificates).encode()
    signature = parse_quote(quote).signature._replace(certification_data=text)
    return pack_quote_v3(quote[:432], signature)


TDX_MODULE = {
    "mrsigner": "00" * 48,
    "attributes": "00" * 8,
    "attributesMask": "FF" * 8,
}
TD_REPORT = TdReport(
    tee_tcb_svn=bytes((6, 1, 3)) + bytes(13),
    mr_seam=bytes(48),
    mr_signer_seam=bytes(48),
    seam_attributes=bytes(8),
    td_attributes=1 << 28,  # SEPT_VE_DISABLE, as in every production TD
    xfam=bytes.fromhex("e702060000000000"),
    mr_td=b"m" * 48,
    mr_config_id=bytes(48),
    mr_owner=bytes(48),
    mr_owner_config=bytes(48),
    rtmr0=b"0" * 48,
    rtmr1=b"1" * 48,
    rtmr2=b"2" * 48,
    rtmr3=b"3" * 48,
    report_data=bytes(64),
)
TD_REPORT_15 = TD_REPORT._replace(tee_tcb_svn2=TD_REPORT.tee_tcb_svn, mr_service_td=bytes(48))


def new_quote(world: World, body: bytes, *, version: int = 4, tdx: bool = True) -> bytes:
    """Return a quote of version 4 or 5 around any body, signed with the device's own keys."""
    body_type = {384: 1, 584: 2, 648: 3}[len(body)]
    device = world.certified.device
    header = struct.pack(
        "<HHIHH16s20s", version, 2, 0x81 if tdx else 0, 0, 0, INTEL_QE_VENDOR_ID, bytes(20)
    )
    typed = struct.pack("<HI", body_type, len(body)) if version == 5 else b""
    signed = header + typed + body
    key = ec.derive_private_key(7, ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
    processor = Processor(fused=device.fused, report_key_id=bytes(32))
    qe_report = processor.report_body(QUOTING_ENCLAVE, qe_report_data(public, bytes(32))).pack()
    chain = world.certified.chain.to_pem().encode()
    inner = qe_report + sign_raw(device.pck_key, qe_report) + struct.pack("<H", 32) + bytes(32)
    inner += struct.pack("<HI", 5, len(chain)) + chain
    outer = sign_raw(key, signed) + public + struct.pack("<HI", 6, len(inner)) + inner
    return signed + struct.pack("<I", len(outer)) + outer


def tdx_collateral(world: World, **changes: Any) -> Collateral:
    """Return TDX collateral of the simulated device; its TCB info may be changed."""
    sgx = world.collateral()
    info = json.loads(sgx.tcb_info)
    module_levels = [
        {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"},
        {"tcb": {"isvsvn": 2}, "tcbDate": "2023-08-09T00:00:00Z", "tcbStatus": "OutOfDate"},
    ]
    info |= {
        "id": "TDX",
        "tdxModule": TDX_MODULE,
        "tdxModuleIdentities": [{"id": "TDX_01", **TDX_MODULE, "tcbLevels": module_levels}],
    }
    for level in info["tcbLevels"]:
        level["tcb"]["tdxtcbcomponents"] = [{"svn": svn} for svn in (5, 0, 2, *[0] * 13)]
    identity = json.loads(sgx.qe_identity) | {"id": "TD_QE"}
    signed: dict[str, Any] = {}
    for field, value in (("tcb_info", info | changes), ("qe_identity", identity)):
        text = json.dumps(value)
        signature = sign_raw(world.certified.device.authority.tcb_signer_key, text.encode())
        signed |= {field: text, f"{field}_signature": signature}
    return dataclasses.replace(sgx, **signed)
