"""Notices a peer that moves back and forth between two endpoints.

A peer that roams goes somewhere new; one that keeps coming back to where it just was is usually two hosts with one
private key, each of which takes the session from the other. Times are boottime nanoseconds.
"""

from __future__ import annotations

from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.endpoint import Endpoint

RETURNS = 3
"""Coming back once or twice is a phone between Wi-Fi and mobile data."""
WITHIN = 120 * SECOND
"""Two hosts with one key take turns every 15 s if both send (no answer, then a new handshake), so three returns fit."""
QUIET_AFTER = 600 * SECOND
"""Between two reports about one peer."""


class Roaming:
    """The recent moves of one peer; made when it moves for the first time."""

    __slots__ = ("_former", "_reported_at", "_returns")

    def __init__(self) -> None:
        self._former: Endpoint | None = None
        self._returns: tuple[int, ...] = ()
        self._reported_at = -QUIET_AFTER

    def move(self, old: Endpoint, new: Endpoint, now: int) -> bool:
        """Note a move. True when the peer is to be reported as flapping between these two."""
        returned, self._former = new == self._former, old
        if not returned:
            self._returns = ()
            return False
        self._returns = (*(at for at in self._returns if now - at < WITHIN), now)[-RETURNS:]
        if len(self._returns) < RETURNS or now - self._reported_at < QUIET_AFTER:
            return False
        self._reported_at = now
        return True
