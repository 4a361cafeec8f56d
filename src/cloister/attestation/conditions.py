"""Further conditions on evidence, to be combined with those of :mod:`cloister.attestation.policy`.

None of them says which enclave is meant or which TCB status is accepted; they narrow what is.
"""

from __future__ import annotations

import dataclasses
import datetime
import re

from cloister.attestation.evidence import Evidence
from cloister.attestation.policy import NOTHING, either, one_of, require_sizes
from cloister.attestation.verdict import Check
from cloister.errors import (
    EnclaveAttributesError,
    PolicyError,
    ReportDataError,
    TcbStatusError,
    UntrustedRootError,
)


@dataclasses.dataclass(frozen=True)
class Advisories:
    """No advisory applies to the platform's TCB level except these."""

    tolerated: frozenset[str]
    names = NOTHING

    def __init__(self, *tolerated: str) -> None:
        object.__setattr__(self, "tolerated", frozenset(item.upper() for item in tolerated))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"no advisories but {either(self.tolerated)}" if self.tolerated else "no advisories"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the advisories."""
        unwanted = [item for item in evidence.advisories if item.upper() not in self.tolerated]
        found = ", ".join(evidence.advisories) or "none"
        expected = f"none but {', '.join(sorted(self.tolerated))}" if self.tolerated else "none"
        return Check("advisories", not unwanted, found, expected, TcbStatusError)


@dataclasses.dataclass(frozen=True)
class MinimumTcbDate:
    """The platform's TCB level is of this date or newer."""

    date: datetime.datetime
    names = NOTHING

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"TCB date {self.date.isoformat()} or later"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the date."""
        found = evidence.tcb_date
        expected = f"{self.date.isoformat()} or later"
        passed = found is not None and found >= self.date
        shown = found.isoformat() if found else "none in an EPID report"
        return Check("TCB date", passed, shown, expected, TcbStatusError)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The enclave's ATTRIBUTES equal ``value`` in the bits of ``mask``.

    Attributes:
        value: 16 bytes, FLAGS and XFRM, little endian each.
        mask: 16 bytes; zero bits are free.
    """

    value: bytes
    mask: bytes
    names = NOTHING

    def __post_init__(self) -> None:
        require_sizes("attributes", [self.value, self.mask], 16)

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"attributes {self.value.hex()} in the bits {self.mask.hex()}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the masked attributes of an SGX enclave."""
        report = evidence.sgx
        if report is None:
            return _masked("attributes", None, "a TDX quote", self.value, self.mask)
        found = report.flags.to_bytes(8, "little") + report.xfrm.to_bytes(8, "little")
        return _masked("attributes", found, found.hex(), self.value, self.mask)


@dataclasses.dataclass(frozen=True)
class TdAttributes:
    """The virtual machine's TD attributes equal ``value`` in the bits of ``mask``.

    Attributes:
        value: 8 bytes, little endian (Intel TDX module specification, TD attributes).
        mask: 8 bytes; zero bits are free.
    """

    value: bytes
    mask: bytes
    names = NOTHING

    def __post_init__(self) -> None:
        require_sizes("TD attributes", [self.value, self.mask], 8)

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"TD attributes {self.value.hex()} in the bits {self.mask.hex()}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the masked attributes of a TDX virtual machine."""
        report = evidence.tdx
        if report is None:
            return _masked("TD attributes", None, "an SGX quote", self.value, self.mask)
        found = report.td_attributes.to_bytes(8, "little")
        return _masked("TD attributes", found, found.hex(), self.value, self.mask)


def _masked(name: str, found: bytes | None, shown: str, value: bytes, mask: bytes) -> Check:
    expected = f"{value.hex()} in the bits {mask.hex()}"
    passed = found is not None and not any(
        (a ^ b) & m for a, b, m in zip(found, value, mask, strict=True)
    )
    return Check(name, passed, shown, expected, EnclaveAttributesError)


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The quote was made for this purpose: its report data is exactly this (64 bytes)."""

    expected: bytes
    names = NOTHING

    def __post_init__(self) -> None:
        require_sizes("report data", [self.expected], 64)

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"report data {self.expected.hex()}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the 64 bytes."""
        return one_of("report data", evidence.report_data, {self.expected}, ReportDataError)


_MEANT = (
    'a policy file that means a SIMULATED platform names its root: roots = ["SHA-256"];'
    " cloister platform export prints it"
)


@dataclasses.dataclass(frozen=True)
class Root:
    """The root that vouches is one of these.

    The verifier's trust anchors are the outer limit; this narrows it for one secret.

    Attributes:
        accepted: SHA-256 of root certificates in DER, lower-case hex.
    """

    accepted: frozenset[str]
    names = NOTHING

    def __init__(self, *accepted: str) -> None:
        values = frozenset(item.lower() for item in accepted)
        if not values or any(not re.fullmatch(r"[0-9a-f]{64}", item) for item in values):
            raise PolicyError("root: give SHA-256 fingerprints, 64 hex digits each")
        object.__setattr__(self, "accepted", values)

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"root {either(self.accepted)}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the fingerprint of the root that vouches."""
        found = evidence.anchor.fingerprint
        shown = f"SIMULATED {found}" if evidence.simulated else found
        passed = found in self.accepted
        hint = _MEANT if evidence.simulated else None
        return Check("root", passed, shown, either(self.accepted), UntrustedRootError, hint)
