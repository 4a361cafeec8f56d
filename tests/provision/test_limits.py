"""Token buckets by address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.provision.limits import (
    MAX_ADDRESSES,
    Admission,
    Admitted,
    Limits,
    RateLimiter,
    origin_of,
)


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


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_counts_as_one_address(address: str, origin: str) -> None:
    assert origin_of(address) == origin


LIMITS = Limits(max_clients=4, max_per_address=3, max_waiting=4)


def test_one_address_keeps_nobody_out() -> None:
    admission: Admission[int] = Admission(LIMITS)
    greedy = [admission.arrive("a", number) for number in range(10)]
    assert greedy == [Admitted.STARTED] * 3 + [Admitted.WAITING] * 2 + [Admitted.TURNED_AWAY] * 5
    assert admission.arrive("b", 10) is Admitted.STARTED
    assert admission.arrive("c", 11) is Admitted.WAITING
    assert admission.next() is None
    admission.leave("b")
    assert admission.next() == ("c", 11)  # the first ones that wait have their share already
    admission.leave("a")
    assert admission.next() == ("a", 3)
    assert admission.dismiss() == [4]
    assert (admission.active, admission.waiting) == (4, 0)


def test_who_may_not_start_yet_waits_and_keeps_nobody_out() -> None:
    admission: Admission[int] = Admission(LIMITS)
    asked: list[str] = []

    def may_start(origin: str) -> bool:
        asked.append(origin)
        return origin != "a"

    assert admission.arrive("a", 0, may_start) is Admitted.WAITING
    assert admission.arrive("a", 1, may_start) is Admitted.WAITING
    assert admission.arrive("b", 2, may_start) is Admitted.STARTED
    assert asked == ["a", "b"]
    assert admission.next(may_start) is None
    assert asked == ["a", "b", "a"]  # once, however many of its clients wait
    assert admission.next() == ("a", 0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), max_size=200))
def test_the_limits_always_hold_and_everyone_is_served_at_last(
    steps: list[tuple[bool, str]],
) -> None:
    admission: Admission[str] = Admission(LIMITS)
    active: list[str] = []
    waiting: list[str] = []

    def start_waiting() -> None:
        while (following := admission.next()) is not None:
            origin, client = following
            assert origin == client
            waiting.remove(origin)
            active.append(origin)

    for arrives, origin in steps:
        if arrives:
            admitted = admission.arrive(origin, origin)
            active += [origin] * (admitted is Admitted.STARTED)
            waiting += [origin] * (admitted is Admitted.WAITING)
        elif origin in active:
            active.remove(origin)
            admission.leave(origin)
            start_waiting()
        assert (admission.active, admission.waiting) == (len(active), len(waiting))
        assert len(active) <= 4
        assert all(active.count(name) <= 3 for name in active)
        assert len(waiting) <= 4
    while active:
        admission.leave(active.pop())
        start_waiting()
    assert admission.waiting == 0
