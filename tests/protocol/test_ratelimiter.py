"""Token buckets per source."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.protocol.constants import LIMITER_BURST, LIMITER_RATE, SECOND
from wyrmhole.protocol.ratelimiter import RateLimiter

V4 = bytes((192, 0, 2, 1))


def v6(subnet: int, host: int) -> bytes:
    return ((0x20010DB8 << 96) | (subnet << 64) | host).to_bytes(16, "big")


def test_a_source_gets_a_burst_and_then_twenty_per_second() -> None:
    limiter = RateLimiter()
    assert [limiter.allow(V4, 0) for _ in range(7)] == [True] * LIMITER_BURST + [False] * 2
    assert sum(limiter.allow(V4, 1 + tick * SECOND // 1000) for tick in range(1000)) == LIMITER_RATE - 1


def test_a_slash_64_is_one_source() -> None:
    limiter = RateLimiter()
    assert sum(limiter.allow(v6(1, host), 0) for host in range(100)) == LIMITER_BURST
    assert limiter.allow(v6(2, 0), 0)
    assert len(limiter) == 2


def test_a_full_table_serves_only_known_sources() -> None:
    limiter = RateLimiter(max_sources=10)
    for subnet in range(10):
        assert limiter.allow(v6(subnet, 1), 0)
    assert not limiter.allow(v6(99, 1), 1)
    assert limiter.allow(v6(3, 1), 1)
    assert len(limiter) == 10


def test_idle_sources_are_evicted() -> None:
    limiter = RateLimiter(max_sources=10)
    for subnet in range(10):
        limiter.allow(v6(subnet, 1), 0)
    assert limiter.allow(v6(99, 1), 2 * SECOND)
    assert len(limiter) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, SECOND)), max_size=200))
def test_no_source_exceeds_burst_plus_rate(events: list[tuple[int, int]]) -> None:
    """The number of tokens stays between 0 and the burst for any order of events (I18)."""
    limiter, now = RateLimiter(max_sources=3), 0
    passed: dict[int, list[int]] = {}
    for source, delay in events:
        now += delay
        if limiter.allow(v6(source, 0), now):
            passed.setdefault(source, []).append(now)
        assert len(limiter) <= 3
    for times in passed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                allowed = LIMITER_BURST + (times[last] - times[first]) * LIMITER_RATE / SECOND
                assert last - first + 1 <= allowed + 1e-6
