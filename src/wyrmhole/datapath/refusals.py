"""Which refusals an engine reports: none unless asked, then a few a second.

A refusal costs a stranger one datagram, so reports of them are limited where they are made. What an authenticated peer
does wrong has a limit of its own, so that strangers cannot hide it. The limit is a virtual clock that each report moves
on by `INTERVAL` and that may be at most `BURST` reports ahead.
"""

from __future__ import annotations

from wyrmhole.protocol.constants import SECOND

INTERVAL = SECOND // 5
BURST = 5


class Refusals:
    __slots__ = ("_from_peers", "_from_strangers", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        self._from_peers = self._from_strangers = 0

    def switch(self, on: bool) -> None:
        self.is_on = on

    def allows(self, *, is_peer: bool, now: int) -> bool:
        """Whether one more is reported at `now` (ns)."""
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
