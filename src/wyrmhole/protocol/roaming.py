"""Detection of a peer that moves back and forth between two endpoints.

A roaming peer moves to new endpoints. A peer that keeps returning to its former endpoint is usually two hosts with the
same private key, which take the session from each other. Times are boottime nanoseconds.
"""

from __future__ import annotations

from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.endpoint import Endpoint

RETURNS = 3
"""Report at the third return: a phone between Wi-Fi and mobile data also returns once or twice."""
WITHIN = 120 * SECOND
"""The time for all returns. Two hosts with one key alternate every 15 s if both send, so three returns fit."""
QUIET_AFTER = 600 * SECOND
"""The minimum time between two reports about one peer."""


class Roaming:
    """The recent moves of one peer, created when it moves for the first time."""

    __slots__ = ("_former", "_reported_at", "_returns")

    def __init__(self) -> None:
        self._former: Endpoint | None = None
        self._returns: tuple[int, ...] = ()
        self._reported_at = -QUIET_AFTER

    def move(self, old: Endpoint, new: Endpoint, now: int) -> bool:
        """Record a move. Return whether to report the peer as flapping between these two endpoints."""
        returned, self._former = new == self._former, old
        if not returned:
            self._returns = ()
            return False
        self._returns = (*(at for at in self._returns if now - at < WITHIN), now)[-RETURNS:]
        if len(self._returns) < RETURNS or now - self._reported_at < QUIET_AFTER:
            return False
        self._reported_at = now
        return True
