"""Limits that keep a key server serving while some clients are hostile."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import ipaddress
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

C = TypeVar("C")

MAX_ADDRESSES = 10_000
"""Addresses whose rate is remembered; the one that was seen longest ago is forgotten first."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, one address and all together may take.

    Attributes:
        max_clients: clients that are served at once; more wait, and their time has not begun.
        max_per_address: how many of them one address may have, so that it keeps nobody out.
        max_waiting: clients that wait; half of them at most from one address.
        client_timeout: seconds for handshake, request and answer together, from the first byte on.
        hello_timeout: seconds until the first byte. Gramine's library connects before it makes its
            key and two quotes, for which it may have to fetch a certificate first.
        crowded_hello_timeout: the same while others wait.
        rate: connections of one address that are begun with a second, on average; more wait.
        burst: how many of them are begun with at once.
    """

    max_clients: int = 256
    max_per_address: int = 192
    max_waiting: int = 2048
    client_timeout: float = 10.0
    hello_timeout: float = 30.0
    crowded_hello_timeout: float = 3.0
    rate: float = 100.0
    burst: int = 1000


@functools.lru_cache(maxsize=1024)
def origin_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the first 64 bits, which one machine owns."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Admitted(enum.Enum):
    """What becomes of a client that has just connected."""

    STARTED = "is served now"
    WAITING = "is served later"
    TURNED_AWAY = "is not served"


class Admission(Generic[C]):
    """Decides who is served now, who waits and who is turned away; safe in several threads.

    Args:
        limits: how many of each there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._active: collections.Counter[str] = collections.Counter()
        self._waiting: collections.deque[tuple[str, C]] = collections.deque()
        self._waiting_from: collections.Counter[str] = collections.Counter()

    @property
    def active(self) -> int:
        """How many are being served."""
        with self._lock:
            return self._active.total()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def arrive(
        self, origin: str, client: C, may_start: Callable[[str], bool] = lambda _: True
    ) -> Admitted:
        """Decide about a new client; one that started must :meth:`leave`.

        Args:
            origin: where it comes from.
            client: what is kept while it waits.
            may_start: asked, last of all, whether an origin may have one more client begun with.
        """
        with self._lock:
            if not self._waiting_from[origin] and self._has_room(origin) and may_start(origin):
                self._active[origin] += 1
                return Admitted.STARTED
            most, share = self._limits.max_waiting, (self._limits.max_waiting + 1) // 2
            if len(self._waiting) >= most or self._waiting_from[origin] >= share:
                self._forget(self._waiting_from, origin)
                return Admitted.TURNED_AWAY
            self._waiting.append((origin, client))
            self._waiting_from[origin] += 1
            return Admitted.WAITING

    def leave(self, origin: str) -> None:
        """A client that was served is gone."""
        with self._lock:
            self._active[origin] -= 1
            self._forget(self._active, origin)

    def next(self, may_start: Callable[[str], bool] = lambda _: True) -> tuple[str, C] | None:
        """Take the first one that waits and can be served now, with its origin; or None.

        Args:
            may_start: as for :meth:`arrive`; asked once about each origin at most.
        """
        with self._lock:
            if self._active.total() >= self._limits.max_clients:
                return None
            passed_over = set[str]()
            for index, (origin, client) in enumerate(self._waiting):
                if origin in passed_over:
                    continue
                if not (self._has_room(origin) and may_start(origin)):
                    passed_over.add(origin)
                    continue
                del self._waiting[index]
                self._waiting_from[origin] -= 1
                self._forget(self._waiting_from, origin)
                self._active[origin] += 1
                return origin, client
            return None

    def dismiss(self) -> list[C]:
        """Take all that wait; none of them is served."""
        with self._lock:
            clients = [client for _, client in self._waiting]
            self._waiting.clear()
            self._waiting_from.clear()
            return clients

    def _has_room(self, origin: str) -> bool:
        return (
            self._active.total() < self._limits.max_clients
            and self._active[origin] < self._limits.max_per_address
        )

    @staticmethod
    def _forget(counter: collections.Counter[str], origin: str) -> None:
        # A counter keeps every name that was ever asked for, and clients choose their addresses.
        if not counter[origin]:
            del counter[origin]


class RateLimiter:
    """A token bucket for each address; for one thread.

    Args:
        rate: tokens a second.
        burst: tokens that a bucket holds.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Take a token of ``address`` and tell whether there was one.

        Args:
            address: where the peer comes from; see :func:`origin_of`.
            now: seconds on any clock that does not go back.
        """
        tokens, last = self._buckets.pop(address, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        allowed = tokens >= 1
        self._buckets[address] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return allowed
