"""A hierarchical timer wheel: arm and cancel in constant time, for any number of entries.

Time is divided into ticks of 2^23 ns (8.4 ms). Level 0 has a slot for each of the next 64 ticks, level 1 one for each
of the next 64 groups of 64 ticks, and so on; five levels reach 104 days. An entry belongs to the level at which its
deadline first differs from the present tick (in base-64 digits), and falls to lower levels as time approaches it. Slots
are dicts (insertion order, removal by key). A bitmap per level shows which slots are in use, so that `next_deadline`
reads only a few integers. Deadlines are rounded up to a tick: an entry may expire up to one tick late, never early.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

TICK_SHIFT = 23
_SLOT_BITS = 6
_SLOTS = 1 << _SLOT_BITS
_LEVELS = 5
_REACH = 1 << (_SLOT_BITS * _LEVELS)


class TimerWheel(Generic[K]):
    """A timer wheel with at most one deadline per key. Times are nanoseconds; a time that goes backwards is ignored."""

    __slots__ = ("_positions", "_slots", "_tick", "_used")

    def __init__(self, now: int) -> None:
        self._tick = now >> TICK_SHIFT
        self._slots: list[dict[int, dict[K, int]]] = [{} for _ in range(_LEVELS)]
        self._used = [0] * _LEVELS
        self._positions: dict[K, tuple[int, int]] = {}

    def arm(self, key: K, deadline: int) -> None:
        """Set the key's deadline, replacing any former one. A past deadline expires at the next `expire`."""
        self.cancel(key)
        self._place(key, -(-deadline >> TICK_SHIFT))

    def cancel(self, key: K) -> None:
        position = self._positions.pop(key, None)
        if position is not None:
            level, slot = position
            entries = self._slots[level][slot]
            del entries[key]
            if not entries:
                self._clear(level, slot)

    def expire(self, now: int) -> list[K]:
        """Remove and return the keys whose deadline is reached, in order of their ticks."""
        expired: list[K] = []
        target = now >> TICK_SHIFT
        while (due := self._next_tick()) is not None and due <= target:
            self._tick = max(self._tick, due)
            self._cascade()
            expired += self._take_present()
        self._tick = max(self._tick, target)
        self._cascade()
        return expired

    def next_deadline(self) -> int | None:
        """Return when to call `expire` next, or None if nothing is armed.

        Some of these calls find nothing due: an entry then falls to a lower level, a few times at most.
        """
        due = self._next_tick()
        return None if due is None else due << TICK_SHIFT

    def __iter__(self) -> Iterator[K]:
        return iter(self._positions)

    def __contains__(self, key: K) -> bool:
        return key in self._positions

    def __len__(self) -> int:
        return len(self._positions)

    def _place(self, key: K, tick: int) -> None:
        tick = min(max(tick, self._tick), self._tick + _REACH - 1)
        level = max(0, (tick ^ self._tick).bit_length() - 1) // _SLOT_BITS
        level = min(level, _LEVELS - 1)
        slot = tick >> (level * _SLOT_BITS) & (_SLOTS - 1)
        self._slots[level].setdefault(slot, {})[key] = tick
        self._used[level] |= 1 << slot
        self._positions[key] = (level, slot)

    def _clear(self, level: int, slot: int) -> None:
        del self._slots[level][slot]
        self._used[level] &= ~(1 << slot)

    def _next_tick(self) -> int | None:
        """Return the first tick at which a used slot begins."""
        best = None
        for level in range(_LEVELS):
            used = self._used[level]
            if not used:
                continue
            shift = level * _SLOT_BITS
            present = self._tick >> shift
            ahead = used >> (present & (_SLOTS - 1))
            if ahead:
                begins = present + (ahead & -ahead).bit_length() - 1
            else:
                begins = (present | (_SLOTS - 1)) + (used & -used).bit_length()
            tick = max(begins << shift, self._tick)
            best = tick if best is None else min(best, tick)
        return best

    def _cascade(self) -> None:
        """Move the entries of the present slots of higher levels down to their new levels."""
        for level in range(_LEVELS - 1, 0, -1):
            slot = self._tick >> (level * _SLOT_BITS) & (_SLOTS - 1)
            if self._used[level] >> slot & 1:
                entries = self._slots[level][slot]
                self._clear(level, slot)
                for key, tick in entries.items():
                    self._place(key, tick)

    def _take_present(self) -> list[K]:
        slot = self._tick & (_SLOTS - 1)
        if not self._used[0] >> slot & 1:
            return []
        entries = self._slots[0][slot]
        self._clear(0, slot)
        for key in entries:
            del self._positions[key]
        return list(entries)
