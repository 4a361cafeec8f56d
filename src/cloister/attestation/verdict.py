"""The verdict on a quote: every check that was made, with what was found and what was expected."""

from __future__ import annotations

import dataclasses
from typing import Any

from cloister.attestation.evidence import Evidence
from cloister.errors import AttestationError, RefusedError


@dataclasses.dataclass(frozen=True)
class Check:
    """One check and its outcome.

    Attributes:
        name: what was looked at, e.g. ``MRENCLAVE``.
        passed: the outcome.
        found: what the evidence says.
        expected: what would pass.
        error: the class of the error if this check decides a refusal.
        hint: what to do about a failure; None takes the error class's own.
        parts: the checks that a combination (all of, any of) is made of.
        decisive: the part that made a combination fail, when it was one.
    """

    name: str
    passed: bool
    found: str
    expected: str
    error: type[RefusedError] = AttestationError
    hint: str | None = None
    parts: tuple[Check, ...] = ()
    decisive: Check | None = None

    @property
    def leaf(self) -> Check:
        """The part that decides, or the check itself."""
        return self if self.decisive is None else self.decisive.leaf

    def as_error(self) -> RefusedError:
        """Return the error that says why this check failed; the deepest cause speaks."""
        leaf = self.leaf
        return leaf.error(f"{leaf.name}: {leaf.found}, expected {leaf.expected}", hint=leaf.hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the check for JSON."""
        shown: dict[str, Any] = {
            "name": self.name,
            "passed": self.passed,
            "found": self.found,
            "expected": self.expected,
        }
        if self.parts:
            shown["parts"] = [part.to_dict() for part in self.parts]
        return shown

    def to_lines(self, indent: str = "") -> list[str]:
        """Return the check for people, one line a check."""
        mark = "ok  " if self.passed else "FAIL"
        line = f"{indent}{mark} {self.name}: {self.found}"
        if not self.passed:
            line += f" (expected {self.expected})"
        return [line, *(text for part in self.parts for text in part.to_lines(indent + "     "))]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a verification.

    Attributes:
        checks: in the order they were made; it ends with the first failure of a check on which
            the later ones depend.
        evidence: what is known to be true, or None when the quote is not genuine.
        simulated: the root that vouches is not Intel's; None when no trusted root was found.
    """

    checks: tuple[Check, ...]
    evidence: Evidence | None
    simulated: bool | None

    @property
    def accepted(self) -> bool:
        """Whether every check passed and the quote is genuine."""
        return self.evidence is not None and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> Evidence:
        """Return the evidence of an accepted quote.

        Raises:
            RefusedError: the first check that failed, as an error of its own class.
        """
        if self.evidence is not None and self.accepted:
            return self.evidence
        raise self.failures[0].as_error()

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return {
            "accepted": self.accepted,
            "simulated": self.simulated,
            "checks": [check.to_dict() for check in self.checks],
            "evidence": self.evidence.to_dict() if self.evidence else None,
        }

    def to_text(self) -> str:
        """Return the verdict for people, one line a check."""
        outcome = "ACCEPTED" if self.accepted else "REFUSED"
        if self.simulated:
            outcome += " (SIMULATED platform: no hardware protects this enclave)"
        lines = [line for check in self.checks for line in check.to_lines("  ")]
        return "\n".join([outcome, *lines])
