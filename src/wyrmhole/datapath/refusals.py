"""A limit on the refusals that an engine reports: none unless switched on, then a few per second.

Anyone can cause a refusal with one datagram, so reports of them are limited at their origin. Refusals of authenticated
peers have a separate limit, so that strangers cannot hide them. The limit is a virtual clock: each report advances it
by `INTERVAL`, and it may be at most `BURST` reports ahead of the time.
"""

from __future__ import annotations

from wyrmhole.protocol.constants import SECOND

INTERVAL = SECOND // 5
BURST = 5


class Refusals:
    """The limits, one for peers and one for strangers."""

    __slots__ = ("_from_peers", "_from_strangers", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        self._from_peers = self._from_strangers = 0

    def switch(self, on: bool) -> None:
        self.is_on = on

    def allows(self, *, is_peer: bool, now: int) -> bool:
        """Return whether to report one more refusal at `now` (ns)."""
        if not self.is_on:
            return False
        ahead = max(self._from_peers if is_peer else self._from_strangers, now)
        if ahead - now > (BURST - 1) * INTERVAL:
            return False
        if is_peer:
            self._from_peers = ahead + INTERVAL
        else:
            self._from_strangers = ahead + INTERVAL
        return True
