"""Who was silent for a while: what tells an honest peer from a flood before anything else was proved.

An honest peer sends an initiation every 5 s at most; who floods, with one address or with as many as it can forge, says
something from each of them again and again. So when more handshake messages come than can be worked on, those go first
whose source (an IPv4 address, or an IPv6 /64) has been silent for two seconds. A flood then buys nothing by being
faster, and only by having more addresses than it sends messages in that time.

The memory of two seconds is a pair of bitmaps, one byte for each slot and two slots for each source, that take turns.
It has a fixed size whatever comes: 65,536 sources in two million slots make one stranger in 250 look known, who is
asked in its next try, with other slots. Nothing here is keyed: who wants to silence an address need not search for
another one that shares its slots, but can forge that address itself.
"""

from __future__ import annotations

from zlib import crc32

from wyrmhole.protocol.constants import SECOND

WINDOW = 2 * SECOND
"""A source is remembered for this long at least and twice as long at most: less than Rekey-Timeout, or retransmissions
of the honest would count against them."""

_SLOT_BITS = 21
_SLOTS = 1 << _SLOT_BITS
_MASK = _SLOTS - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class QuietSources:
    __slots__ = ("_born", "_former", "_former_factor", "_latter", "_latter_factor", "_turn")

    def __init__(self) -> None:
        self._turn = 0
        self._born = -2 * WINDOW
        self._former = self._latter = bytearray()
        self._former_factor = self._latter_factor = 1

    def was_quiet(self, source: bytes, now: int) -> bool:
        """Whether the source was silent for the window before `now` (ns, not decreasing); it is not from here on."""
        if now - self._born >= WINDOW:
            self._take_turn(now)
        number = crc32(source)
        mixed = number * self._former_factor & _WORD
        known = self._former[mixed >> 43] and self._former[mixed >> 22 & _MASK]
        mixed = number * self._latter_factor & _WORD
        first, second = mixed >> 43, mixed >> 22 & _MASK
        latter = self._latter
        known = known or (latter[first] and latter[second])
        latter[first] = latter[second] = 1
        return not known

    def _take_turn(self, now: int) -> None:
        lapsed = now - self._born >= 2 * WINDOW
        self._former = bytearray(_SLOTS) if lapsed else self._latter
        self._former_factor = self._latter_factor
        self._turn += 1
        self._latter, self._latter_factor = bytearray(_SLOTS), (2 * self._turn + 1) * _GOLDEN & _WORD
        self._born = now
