"""A time limit for several waits together."""

from __future__ import annotations

from wyrmhole.device.clock import SystemClock

_clock = SystemClock()


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = _clock.boottime() + int(seconds * 1e9)

    @property
    def remaining(self) -> float:
        """The remaining seconds; 0 after the end."""
        return max(0.0, (self._end - _clock.boottime()) / 1e9)

    @property
    def is_over(self) -> bool:
        return self.remaining == 0.0

    def shorten(self, seconds: float) -> None:
        """End after this time, unless the deadline is earlier."""
        self._end = min(self._end, _clock.boottime() + int(seconds * 1e9))
