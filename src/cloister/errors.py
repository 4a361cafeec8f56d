"""One family of exceptions: what happened, where, what was expected, what to do.

Every error that a user can meet is a :class:`CloisterError`. Its text is one line; its ``hint``,
when there is one, is a second line that says what to do. The exit code of a command that fails
with it is the class's ``exit_code`` (design: 0 success, 1 the work failed, 2 wrong usage or
input, 3 refused by policy or failed verification).

Hints that are always the same live here, beside the class; hints that depend on the case are
passed by the caller. No message ever carries key material.
"""

from __future__ import annotations

from typing import ClassVar


class CloisterError(Exception):
    """The work failed for a reason that a person can understand.

    Args:
        message: one line: what happened, to which file or peer, what was expected.
        hint: what to do about it; None takes the class's own hint.
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint


class InputError(CloisterError):
    """Wrong usage or wrong input: the person who typed the command can mend it."""

    exit_code = 2


class RefusedError(CloisterError):
    """Refused by policy, or something failed verification."""

    exit_code = 3
