"""One deadline for a whole exchange, so that no peer can hold us longer by being slow."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: how far ahead it lies.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left, above zero.

        Raises:
            TimeoutError: none are left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {self._seconds:g} seconds")
        return left
