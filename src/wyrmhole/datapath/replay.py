"""The sliding window of received counters (RFC 6479's idea, whitepaper 5.4.6), one per keypair.

RFC 6479 keeps a ring of blocks so that moving the window clears whole words. A Python integer of any size is cheaper
than a ring of words: bit i stands for counter `greatest - i`, moving the window is one shift, and the block that the
RFC leaves spare is kept so that the usable window is the same as the kernel's and wireguard-go's: 8192 - 64 = 8128.

Call only after the tag has verified: an unauthenticated counter must not move the window (rule M23).
"""

from __future__ import annotations

WINDOW_BITS = 8192
WINDOW_SIZE = WINDOW_BITS - 64

_MASK = (1 << WINDOW_SIZE) - 1


class ReplayWindow:
    """A fresh window has seen nothing; counters are 0 to 2^64-1, the upper limit is the caller's to hold."""

    __slots__ = ("_pending", "_seen", "greatest")

    def __init__(self) -> None:
        self.greatest = -1
        self._seen = 0
        # In-order counters only lengthen `_pending`; the wide shift happens when something asks about older ones.
        self._pending = 0

    def would_accept(self, counter: int) -> bool:
        behind = self.greatest - counter
        if behind < 0:
            return True
        if behind < self._pending:
            return False
        self._fold()
        return behind < WINDOW_SIZE and not self._seen >> behind & 1

    def accept(self, counter: int) -> bool:
        """True once for each counter that is not too old; it is remembered."""
        ahead = counter - self.greatest
        if ahead == 1:
            self.greatest = counter
            self._pending += 1
            return True
        if ahead > 0:
            self._fold()
            self._seen = (self._seen << ahead | 1) & _MASK if ahead < WINDOW_SIZE else 1
            self.greatest = counter
            return True
        if not self.would_accept(counter):
            return False
        self._seen |= 1 << -ahead
        return True

    def inspect(self) -> tuple[int, int]:
        """`greatest` and the bits behind it, the same before and after a fold; for tests and the simulator."""
        pending = min(self._pending, WINDOW_SIZE)
        return self.greatest, (self._seen << pending | (1 << pending) - 1) & _MASK

    def _fold(self) -> None:
        pending = self._pending
        if pending:
            self._pending = 0
            pending = min(pending, WINDOW_SIZE)
            self._seen = (self._seen << pending | ((1 << pending) - 1)) & _MASK
