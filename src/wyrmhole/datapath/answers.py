"""The ICMP errors that are returned to the TUN, within a rate limit.

They report to the sender of a packet that it has no destination (rule M46). The rate is limited (RFC 1812 4.3.2.8, RFC
4443 2.4 f), because a sender of a million such packets needs only a few errors.
"""

from __future__ import annotations

from wyrmhole.wire import ip

INTERVAL = 10_000_000
"""Nanoseconds that earn one answer: 100 per second, like the kernel's limit."""
BURST = 10


class Answers:
    """A token bucket in front of `ip.unreachable`."""

    def __init__(self) -> None:
        self._tokens = BURST
        self._earned_at = 0

    def make(self, packet: bytes, now: int) -> bytes | None:
        """Return the error for this packet, or None if such a packet must not be answered or the limit is reached."""
        earned = (now - self._earned_at) // INTERVAL
        if earned:
            self._tokens = min(BURST, self._tokens + earned)
            self._earned_at = now
        if not self._tokens:
            return None
        self._tokens -= 1
        return ip.unreachable(packet, no_route=False)
