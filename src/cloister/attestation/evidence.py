"""What a genuine quote proves, after verification and before any policy."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.dcap import pck_chain
from cloister.sgx.epid import EpidQuote
from cloister.sgx.quote import Quote, TdReport
from cloister.sgx.report import ReportBody
from cloister.tdx.event_log import ProgramEvent


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Facts vouched for by the root ``anchor``.

    Attributes:
        quote: the quote; its header and body are signed.
        anchor: the root that vouches.
        tcb_status: the worse of the platform's and the quoting enclave's status.
        advisories: advisories that apply to the TCB levels of both, sorted.
        tcb_date: the earlier date of these levels; EPID has none.
        fmspc: kind of platform, 6 bytes; EPID has none (empty).
        ppid: the platform's own identifier; EPID has none (empty).
        collateral_expires: when the first piece of the collateral runs out.
        programs: what a TDX virtual machine has run, if an event log lay beside the quote.
    """

    quote: Quote | EpidQuote
    anchor: TrustAnchor
    tcb_status: str
    advisories: tuple[str, ...]
    tcb_date: datetime.datetime | None
    fmspc: bytes
    ppid: bytes
    collateral_expires: datetime.datetime
    programs: tuple[ProgramEvent, ...] | None = None

    @property
    def simulated(self) -> bool:
        """Whether the root is anything but Intel's."""
        return self.anchor.simulated

    @property
    def sgx(self) -> ReportBody | None:
        """The SGX report body, or None in a TDX quote."""
        report = self.quote.report
        return report if isinstance(report, ReportBody) else None

    @property
    def tdx(self) -> TdReport | None:
        """The TD report, or None in an SGX quote."""
        report = self.quote.report
        return report if isinstance(report, TdReport) else None

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave chose."""
        return self.quote.report_data

    @property
    def identity(self) -> str:
        """The measurement in one short text, for logs."""
        report = self.quote.report
        if isinstance(report, TdReport):
            programs = (f", program {event.mr_enclave.hex()}" for event in self.programs or ())
            return f"MRTD {report.mr_td.hex()}{''.join(programs)}"
        return f"MRENCLAVE {report.mr_enclave.hex()}"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {
            "tee": "TDX" if self.quote.is_tdx else "SGX",
            "simulated": self.simulated,
            "root": self.anchor.name,
            "root_sha256": self.anchor.fingerprint,
            "tcb_status": self.tcb_status,
            "advisories": list(self.advisories),
            "tcb_date": self.tcb_date.isoformat() if self.tcb_date else None,
            "fmspc": self.fmspc.hex(),
            "collateral_expires": self.collateral_expires.isoformat(),
            "report": report_dict(self.quote),
            **({} if self.programs is None else {"programs": [*map(_program, self.programs)]}),
        }


def _program(event: ProgramEvent) -> dict[str, Any]:
    return _shown(event._asdict())


def report_dict(quote: Quote | EpidQuote) -> dict[str, Any]:
    """Return the fields of a quote's body for JSON; byte strings as hex."""
    return _shown(quote.report._asdict())


def epid_dict(quote: EpidQuote) -> dict[str, Any]:
    """Return what an unverified EPID quote claims, for JSON."""
    return {
        "verified": False,
        "simulated": False,
        "tee": "SGX, EPID: only Intel could verify such quotes, and has retired the service",
        "header": _shown(quote.header._asdict()),
        "report": report_dict(quote),
    }


def _shown(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields for JSON; byte strings as hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in fields.items()
        if value is not None
    }


def quote_dict(quote: Quote) -> dict[str, Any]:
    """Return what an unverified quote claims, for JSON.

    Raises:
        CertificateChainError: its certificates cannot be read.
    """
    signature = quote.signature
    chain = pck_chain(signature.certification_data) if signature.certification_type == 5 else []
    return {
        "verified": False,
        "simulated": any(b"SIMULATED" in item.tbs_certificate_bytes for item in chain),
        "tee": "TDX" if quote.is_tdx else "SGX",
        "size": len(quote.raw),
        "header": _shown(quote.header._asdict()),
        "report": report_dict(quote),
        "quoting_enclave": {
            "mr_enclave": quote.qe_report.mr_enclave.hex(),
            "mr_signer": quote.qe_report.mr_signer.hex(),
            "isv_prod_id": quote.qe_report.isv_prod_id,
            "isv_svn": quote.qe_report.isv_svn,
        },
        "certification_data_type": signature.certification_type,
        "certificates_sha256": [item.fingerprint(hashes.SHA256()).hex() for item in chain],
    }
