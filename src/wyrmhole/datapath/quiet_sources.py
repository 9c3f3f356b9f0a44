"""Quiet sources: tell honest peers from a flood before anything else is proved.

An honest peer sends at most one initiation every 5 s. A flooder, whether it uses one address or forges many, reuses
each of them constantly. When more handshake messages arrive than can be processed, those are accepted whose source (an
IPv4 address, or an IPv6 /64) was silent for two seconds. A flood then gains nothing by being faster; it would need more
addresses than it sends messages in two seconds.

The sources of the last two seconds are remembered in a pair of bitmaps that alternate, with one byte per slot and two
slots per source. Their size is fixed. With 65,536 sources in two million slots, about one new source in 250 is mistaken
for a known one; its next attempt hashes to other slots. Nothing here is keyed: an attacker who wants to silence an
address need not search for one that shares its slots, because it can forge that address itself.
"""

from __future__ import annotations

from zlib import crc32

from wyrmhole.protocol.constants import SECOND

WINDOW = 2 * SECOND
"""A source is remembered for at least this long and at most twice as long. This is less than Rekey-Timeout, so that
retransmissions of honest peers do not count against them."""

_SLOT_BITS = 21
_SLOTS = 1 << _SLOT_BITS
_MASK = _SLOTS - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class QuietSources:
    """The memory of recent sources."""

    __slots__ = ("_born", "_former", "_former_factor", "_latter", "_latter_factor", "_turn")

    def __init__(self) -> None:
        self._turn = 0
        self._born = -2 * WINDOW
        self._former = self._latter = bytearray()
        self._former_factor = self._latter_factor = 1

    def was_quiet(self, source: bytes, now: int) -> bool:
        """Return whether the source was silent for the window before `now` (ns, not decreasing), and remember it."""
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
