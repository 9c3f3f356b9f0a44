"""The ICMP errors that go back to the TUN, and how many.

They tell the sender of a packet that it has nowhere to go (rule M46), within a rate: whoever sends a million such
packets needs to hear it a few times only (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
"""

from __future__ import annotations

from wyrmhole.wire import ip

INTERVAL = 10_000_000
"""Nanoseconds that earn one answer: 100 a second, as the kernel limits its own."""
BURST = 10


class Answers:
    """A token bucket in front of `ip.unreachable`."""

    def __init__(self) -> None:
        self._tokens = BURST
        self._earned_at = 0

    def make(self, packet: bytes, now: int) -> bytes | None:
        """The error for this packet; None: there is none for such a packet, or there were enough of late."""
        earned = (now - self._earned_at) // INTERVAL
        if earned:
            self._tokens = min(BURST, self._tokens + earned)
            self._earned_at = now
        if not self._tokens:
            return None
        self._tokens -= 1
        return ip.unreachable(packet, no_route=False)
