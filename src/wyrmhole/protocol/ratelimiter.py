"""Token buckets for handshake messages, one per source: an IPv4 address or an IPv6 /64 (whitepaper 5.3).

A bucket holds nanoseconds of credit, and one message costs 1/20 s. The table is ordered by last use, so forgetting idle
sources never visits busy ones. The table has a cap: while it is full of busy sources, unknown sources are refused and
known ones are still served.
"""

from __future__ import annotations

from wyrmhole.protocol.constants import LIMITER_BURST, LIMITER_MAX_SOURCES, LIMITER_RATE, SECOND

COST = SECOND // LIMITER_RATE
CAPACITY = COST * LIMITER_BURST
IDLE = SECOND
"""After this time without a message a bucket is full again, so forgetting the source changes nothing."""


class RateLimiter:
    __slots__ = ("_buckets", "_max_sources")

    def __init__(self, max_sources: int = LIMITER_MAX_SOURCES) -> None:
        self._buckets: dict[bytes, tuple[int, int]] = {}
        self._max_sources = max_sources

    def allow(self, address: bytes, now: int) -> bool:
        """Return whether one more message from the 4- or 16-byte address may pass at `now` (ns, not decreasing)."""
        source = address if len(address) == 4 else address[:8]
        bucket = self._buckets.pop(source, None)
        if bucket is None:
            self._forget_idle(now)
            if len(self._buckets) >= self._max_sources:
                return False
            bucket = (CAPACITY, now)
        tokens, seen = bucket
        tokens = min(CAPACITY, tokens + max(0, now - seen))
        allowed = tokens >= COST
        self._buckets[source] = (tokens - COST if allowed else tokens, now)
        return allowed

    def _forget_idle(self, now: int) -> None:
        while self._buckets:
            oldest = next(iter(self._buckets))
            if now - self._buckets[oldest][1] <= IDLE:
                return
            del self._buckets[oldest]

    def inspect(self) -> tuple[int, ...]:
        """Return the credit of each remembered source, for tests and the simulator."""
        return tuple(tokens for tokens, _ in self._buckets.values())

    def __len__(self) -> int:
        return len(self._buckets)
