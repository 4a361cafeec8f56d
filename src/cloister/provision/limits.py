"""Limits that keep a key server serving while some clients are hostile."""

from __future__ import annotations

import collections
import dataclasses
import threading

MAX_ADDRESSES = 10_000
"""Addresses whose rate is remembered; the one that was seen longest ago is forgotten first."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, one address and all together may take.

    Attributes:
        max_clients: clients that are served at once; more wait in the system's queue.
        client_timeout: seconds for handshake, request and answer together.
        hello_timeout: seconds until the first byte.
        rate: new connections a second that one address may make, on average.
        burst: how many of them it may make at once.
    """

    max_clients: int = 512
    client_timeout: float = 10.0
    hello_timeout: float = 3.0
    rate: float = 100.0
    burst: int = 1000


class RateLimiter:
    """A token bucket for each address.

    Args:
        rate: tokens a second.
        burst: tokens that a bucket holds.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._lock = threading.Lock()
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Take a token of ``address`` and tell whether there was one.

        Args:
            address: the peer's IP address.
            now: seconds on any clock that does not go back.
        """
        with self._lock:
            tokens, last = self._buckets.pop(address, (float(self._burst), now))
            tokens = min(self._burst, tokens + (now - last) * self._rate)
            allowed = tokens >= 1
            self._buckets[address] = (tokens - 1 if allowed else tokens, now)
            while len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            return allowed
