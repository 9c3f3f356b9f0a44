"""The sliding window of received counters (RFC 6479, whitepaper 5.4.6), one per keypair.

RFC 6479 uses a ring of words, so that moving the window clears whole words. In Python one large integer is cheaper: bit
i stands for counter `greatest - i`, and moving the window is one shift. The RFC keeps one word spare. The window here
is smaller by the same amount, so that it equals that of the kernel and wireguard-go: 8192 - 64 = 8128.

Call only after the tag was verified: an unauthenticated counter must not move the window (rule M23).
"""

from __future__ import annotations

WINDOW_BITS = 8192
WINDOW_SIZE = WINDOW_BITS - 64

_MASK = (1 << WINDOW_SIZE) - 1


class ReplayWindow:
    """The counters seen so far. The caller enforces the upper limit on counters."""

    __slots__ = ("_pending", "_seen", "greatest")

    def __init__(self) -> None:
        self.greatest = -1
        self._seen = 0
        # Counters in order only increase `_pending`; the wide shift is done when an older counter is checked.
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
        """Return true once for each counter that is not too old, and remember it."""
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
        """Return `greatest` and the bits behind it, independent of `_fold`; for tests and the simulator."""
        pending = min(self._pending, WINDOW_SIZE)
        return self.greatest, (self._seen << pending | (1 << pending) - 1) & _MASK

    def _fold(self) -> None:
        pending = self._pending
        if pending:
            self._pending = 0
            pending = min(pending, WINDOW_SIZE)
            self._seen = (self._seen << pending | ((1 << pending) - 1)) & _MASK
