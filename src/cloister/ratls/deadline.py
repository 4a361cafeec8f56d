"""One deadline for a whole exchange, so that no peer can hold us longer by being slow."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: how far ahead it lies.
        missing: what is not there when it has passed, for the message.
    """

    def __init__(self, seconds: float, missing: str = "no answer") -> None:
        self._seconds = seconds
        self._missing = missing
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left, above zero.

        Raises:
            TimeoutError: none are left.
        """
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{self._missing} within {self._seconds:g} seconds")
        return left
