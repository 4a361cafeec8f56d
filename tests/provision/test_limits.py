"""Token buckets by address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.provision.limits import MAX_ADDRESSES, RateLimiter


def test_a_burst_and_then_the_rate() -> None:
    limiter = RateLimiter(rate=2, burst=3)
    assert [limiter.allows("a", 0) for _ in range(5)] == [True, True, True, False, False]
    assert limiter.allows("b", 0)
    assert not limiter.allows("a", 0.4)
    assert limiter.allows("a", 0.6)
    assert not limiter.allows("a", 0.7)
    assert [limiter.allows("a", 100) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(1, 20), st.integers(1, 20))
def test_no_address_gets_more_than_burst_and_rate(gaps: list[float], rate: int, burst: int) -> None:
    limiter, now, allowed = RateLimiter(rate, burst), 0.0, 0
    for gap in gaps:
        now += gap
        allowed += limiter.allows("a", now)
        assert allowed <= burst + rate * now + 1e-6


def test_memory_is_bounded() -> None:
    limiter = RateLimiter(1, 1)
    for number in range(MAX_ADDRESSES + 100):
        limiter.allows(str(number), 0)
    assert len(limiter._buckets) == MAX_ADDRESSES
    assert limiter.allows("0", 0)  # forgotten, so that its bucket is full again
