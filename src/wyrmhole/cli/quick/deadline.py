"""How long a wait may still take."""

from __future__ import annotations

from wyrmhole.device.clock import SystemClock

_clock = SystemClock()


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = _clock.boottime() + int(seconds * 1e9)

    @property
    def remaining(self) -> float:
        """Seconds; 0 once it is over."""
        return max(0.0, (self._end - _clock.boottime()) / 1e9)

    @property
    def is_over(self) -> bool:
        return self.remaining == 0.0

    def shorten(self, seconds: float) -> None:
        """Have it end that soon, unless it ends sooner."""
        self._end = min(self._end, _clock.boottime() + int(seconds * 1e9))
