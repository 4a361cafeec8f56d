"""Policies: which genuine enclaves are the expected ones.

A policy is a small object that looks at verified evidence and returns a :class:`Check`. Bigger
ones are made with :func:`all_of` and :func:`any_of`. Each policy says which subjects it names;
nothing is accepted that no policy names: one that does not say which enclave it means is
refused before any quote is looked at, and the TCB status defaults to UpToDate alone.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Protocol

from cloister.attestation.evidence import Evidence
from cloister.attestation.status import TCB_STATUSES, UP_TO_DATE
from cloister.attestation.verdict import Check
from cloister.errors import (
    AttestationError,
    PolicyError,
    TcbStatusError,
    WrongMeasurementError,
    WrongSignerError,
)


class Subject(enum.Enum):
    """What a policy can speak about; a usable policy speaks about both."""

    IDENTITY = "which enclave"
    TCB = "which TCB status"


class Policy(Protocol):
    """One condition on verified evidence."""

    @property
    def names(self) -> frozenset[Subject]:
        """The subjects that evidence accepted by this policy was judged on."""
        ...

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        ...

    def verify(self, evidence: Evidence) -> Check:
        """Judge the evidence."""
        ...


IDENTITY = frozenset({Subject.IDENTITY})
"""What a policy names that says which enclave it means."""

NOTHING: frozenset[Subject] = frozenset()
"""What a policy names that only narrows what another one means."""


@dataclasses.dataclass(frozen=True)
class MrEnclave:
    """The enclave is one of these measurements (32 bytes each)."""

    accepted: frozenset[bytes]
    names = IDENTITY

    def __init__(self, *accepted: bytes) -> None:
        require_sizes("MRENCLAVE", accepted, 32)
        object.__setattr__(self, "accepted", frozenset(accepted))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"MRENCLAVE {either(item.hex() for item in self.accepted)}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare MRENCLAVE; a TDX quote has none and fails."""
        found = evidence.sgx.mr_enclave if evidence.sgx else None
        return one_of("MRENCLAVE", found, self.accepted, WrongMeasurementError)


@dataclasses.dataclass(frozen=True)
class MrSigner:
    """The enclave is this signer's product, in this security version or a newer one.

    Attributes:
        signer: MRSIGNER, 32 bytes.
        isv_prod_id: the signer's product number.
        minimum_isv_svn: lowest accepted security version.
    """

    signer: bytes
    isv_prod_id: int
    minimum_isv_svn: int
    names = IDENTITY

    def __post_init__(self) -> None:
        require_sizes("MRSIGNER", [self.signer], 32)

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return (
            f"MRSIGNER {self.signer.hex()}, product id {self.isv_prod_id},"
            f" SVN {self.minimum_isv_svn} or above"
        )

    def verify(self, evidence: Evidence) -> Check:
        """Compare MRSIGNER, ISVPRODID and ISVSVN."""
        report = evidence.sgx
        if report is None:
            return Check("MRSIGNER", False, "a TDX quote", self.signer.hex(), WrongSignerError)
        parts = (
            one_of("MRSIGNER", report.mr_signer, {self.signer}, WrongSignerError),
            Check(
                "ISVPRODID",
                report.isv_prod_id == self.isv_prod_id,
                str(report.isv_prod_id),
                str(self.isv_prod_id),
                WrongSignerError,
                "another product of the same signer",
            ),
            Check(
                "ISVSVN",
                report.isv_svn >= self.minimum_isv_svn,
                str(report.isv_svn),
                f"{self.minimum_isv_svn} or above",
                WrongSignerError,
                "an old version of the enclave; run the present one",
            ),
        )
        return every("signer", parts)


@dataclasses.dataclass(frozen=True)
class MrTd:
    """The TDX virtual machine has this initial measurement and these runtime registers.

    Attributes:
        mr_td: 48 bytes.
        rtmrs: register number (0 to 3) -> 48 bytes; registers that are not named are free.
    """

    mr_td: bytes
    rtmrs: tuple[tuple[int, bytes], ...] = ()
    names = IDENTITY

    def __post_init__(self) -> None:
        require_sizes("MRTD", [self.mr_td, *(value for _, value in self.rtmrs)], 48)
        if any(number not in range(4) for number, _ in self.rtmrs):
            raise PolicyError("RTMR: there are registers 0 to 3")

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        registers = (f", RTMR{number} {value.hex()}" for number, value in self.rtmrs)
        return f"MRTD {self.mr_td.hex()}{''.join(registers)}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare MRTD and the named RTMRs."""
        report = evidence.tdx
        if report is None:
            return Check("MRTD", False, "an SGX quote", self.mr_td.hex(), WrongMeasurementError)
        parts = [one_of("MRTD", report.mr_td, {self.mr_td}, WrongMeasurementError)]
        for number, value in self.rtmrs:
            found: bytes = getattr(report, f"rtmr{number}")
            parts.append(one_of(f"RTMR{number}", found, {value}, WrongMeasurementError))
        return every("TDX measurements", parts)


@dataclasses.dataclass(frozen=True)
class TdPrograms:
    """The TDX virtual machine has run these programs (MRENCLAVE, 32 bytes each) and no others.

    The event log beside the quote says what ran; it counts only if its replay gave RTMR 3.
    """

    accepted: frozenset[bytes]
    names = NOTHING

    def __init__(self, *accepted: bytes) -> None:
        require_sizes("program", accepted, 32)
        object.__setattr__(self, "accepted", frozenset(accepted))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"programs {either(item.hex() for item in self.accepted)} and no others"

    def verify(self, evidence: Evidence) -> Check:
        """Compare every program of the log; none is not enough."""
        expected = either(item.hex() for item in self.accepted)
        if not evidence.programs:
            found = "no event log beside the quote" if evidence.programs is None else "none"
            return Check("program", False, found, expected, WrongMeasurementError)
        found = ", ".join(
            event.mr_enclave.hex() + (" (debug)" if event.debug else "")
            for event in evidence.programs
        )
        passed = all(
            event.mr_enclave in self.accepted and not event.debug for event in evidence.programs
        )
        return Check("program", passed, found, expected, WrongMeasurementError)


@dataclasses.dataclass(frozen=True)
class AnyEnclave:
    """Any genuine enclave at all: proves a platform, not a program. Never for secrets."""

    names = IDENTITY

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return "any enclave at all (proves a platform, not a program)"

    def verify(self, evidence: Evidence) -> Check:
        """Accept."""
        return Check("enclave", True, f"{evidence.identity} (any enclave is accepted)", "any")


@dataclasses.dataclass(frozen=True)
class TcbStatus:
    """The platform's TCB status is one of these; all advisories are accepted with it.

    Attributes:
        accepted: names as in :data:`cloister.attestation.status.TCB_STATUSES`.
    """

    accepted: frozenset[str]
    names = frozenset({Subject.TCB})

    def __init__(self, *accepted: str) -> None:
        for status in accepted:
            if status not in TCB_STATUSES:
                raise PolicyError(
                    f"TCB status {status}: unknown, or never acceptable",
                    hint=f"there are: {', '.join(TCB_STATUSES)}",
                )
        object.__setattr__(self, "accepted", frozenset(accepted or (UP_TO_DATE,)))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return f"TCB status {either(self.accepted)}"

    def verify(self, evidence: Evidence) -> Check:
        """Compare the status."""
        found = evidence.tcb_status
        shown = found + (f" ({', '.join(evidence.advisories)})" if evidence.advisories else "")
        passed = found in self.accepted
        return Check("TCB status", passed, shown, either(self.accepted), TcbStatusError)


@dataclasses.dataclass(frozen=True)
class AllOf:
    """Every one of several policies."""

    parts: tuple[Policy, ...]

    @property
    def names(self) -> frozenset[Subject]:
        """What any part names."""
        return frozenset().union(*(part.names for part in self.parts))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return "; ".join(part.describe() for part in self.parts)

    def verify(self, evidence: Evidence) -> Check:
        """Judge by every part."""
        return every("all of", (part.verify(evidence) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """At least one of several policies."""

    parts: tuple[Policy, ...]

    @property
    def names(self) -> frozenset[Subject]:
        """What every part names: the one that accepts may be any of them."""
        return frozenset.intersection(*(part.names for part in self.parts))

    def describe(self) -> str:
        """Say in plain words what is accepted."""
        return "either " + " | or ".join(f"({part.describe()})" for part in self.parts)

    def verify(self, evidence: Evidence) -> Check:
        """Judge by every part; one is enough."""
        return _any("any of", (part.verify(evidence) for part in self.parts))


def all_of(*parts: Policy) -> Policy:
    """Return the policy that demands every one of ``parts``."""
    return AllOf(_some(parts))


def any_of(*parts: Policy) -> Policy:
    """Return the policy that demands at least one of ``parts``."""
    return AnyOf(_some(parts))


def completed(policy: Policy) -> Policy:
    """Return ``policy`` with the default for the TCB status, if it names none.

    Raises:
        PolicyError: it does not say which enclave it means.
    """
    if Subject.IDENTITY not in policy.names:
        raise PolicyError(
            "the policy does not say which enclave it means",
            hint="name at least MRENCLAVE, or MRSIGNER with a product id and a minimum SVN",
        )
    return _with_tcb_status(policy)


def _with_tcb_status(policy: Policy) -> Policy:
    """Add the default where a policy, or one of its alternatives, names no TCB status."""
    if Subject.TCB in policy.names:
        return policy
    if isinstance(policy, AnyOf) and _mentions_tcb(policy):
        return AnyOf(tuple(_with_tcb_status(part) for part in policy.parts))
    if isinstance(policy, AllOf):
        for number, part in enumerate(policy.parts):
            if _mentions_tcb(part):
                before, after = policy.parts[:number], policy.parts[number + 1 :]
                return AllOf((*before, _with_tcb_status(part), *after))
    return all_of(policy, TcbStatus())


def _mentions_tcb(policy: Policy) -> bool:
    if isinstance(policy, (AllOf, AnyOf)):
        return any(_mentions_tcb(part) for part in policy.parts)
    return Subject.TCB in policy.names


def _some(parts: tuple[Policy, ...]) -> tuple[Policy, ...]:
    if not parts:
        raise PolicyError("a combined policy needs at least one part")
    return parts


def require_sizes(name: str, values: Iterable[bytes], size: int) -> None:
    """Check the lengths of a policy's values.

    Raises:
        PolicyError: there are none, or one has another length.
    """
    values = list(values)
    if not values:
        raise PolicyError(f"{name}: at least one value is needed")
    for value in values:
        if len(value) != size:
            raise PolicyError(f"{name}: {len(value)} bytes, expected {size}")


def one_of(
    name: str, found: bytes | None, accepted: Iterable[bytes], error: type[AttestationError]
) -> Check:
    """Return the check that ``found`` is one of the accepted values."""
    expected = frozenset(accepted)
    shown = found.hex() if found is not None else "none in this kind of quote"
    return Check(name, found in expected, shown, either(item.hex() for item in expected), error)


def either(items: Iterable[str]) -> str:
    """Return alternatives in words, sorted."""
    return " or ".join(sorted(items))


def every(name: str, checks: Iterable[Check]) -> Check:
    """Return the check that each of several holds."""
    parts = tuple(checks)
    failed = [part for part in parts if not part.passed]
    return Check(
        name=name,
        passed=not failed,
        found=f"{len(parts) - len(failed)} of {len(parts)} hold",
        expected="all",
        error=failed[0].error if failed else AttestationError,
        parts=parts,
        decisive=failed[0] if failed else None,
    )


def _any(name: str, checks: Iterable[Check]) -> Check:
    parts = tuple(checks)
    holding = [part for part in parts if part.passed]
    found = f"{len(holding)} of {len(parts)} hold"
    if not holding:
        found = "none holds (" + "; ".join(part.as_error().message for part in parts) + ")"
    return Check(
        name=name,
        passed=bool(holding),
        found=found,
        expected="at least one",
        error=parts[0].error,
        parts=parts,
        decisive=parts[0] if len(parts) == 1 and not holding else None,
    )
