"""The only reader of the operating system's clocks and randomness.

Deadlines use CLOCK_BOOTTIME, which continues to count while the machine is suspended: when a laptop wakes up, a session
from before may have expired. For the same reason, the alarm is a timerfd on this clock: the timers of an event loop
stop during suspend.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

from wyrmhole.net import timerfd
from wyrmhole.system import libc

_TIME_ERROR = 5


class Clock(Protocol):
    """The clocks and the randomness that a device uses."""

    def boottime(self) -> int:
        """Return nanoseconds since boot, including suspend; they never decrease."""

    def wall(self) -> int:
        """Return nanoseconds since 1970; they may jump."""

    def random(self, size: int) -> bytes:
        """Return secret bytes."""


class Boottime:
    """The boottime clock. Its attribute allows an engine to read CLOCK_BOOTTIME directly, without the interpreter."""

    is_boottime = True

    def __call__(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SystemClock:
    """The operating system's clocks and randomness."""

    boottime = Boottime()

    def wall(self) -> int:
        return time.time_ns()

    def random(self, size: int) -> bytes:
        return os.urandom(size)


PLAUSIBLE_SECONDS = 1_700_000_000
"""Seconds since 1970, in November 2023: an earlier wall clock is certainly wrong."""


def is_plausible(wall: int) -> bool:
    """Return whether the wall clock (nanoseconds) may be right."""
    return wall // 1_000_000_000 >= PLAUSIBLE_SECONDS


def is_synchronised() -> bool:
    """Return whether the kernel reports that the wall clock is synchronised (adjtimex(2))."""
    try:
        return libc.clock_state() < _TIME_ERROR
    except OSError:
        return False


class Alarm:
    """A descriptor that becomes readable at a boottime deadline. Raises OSError if timerfd is not available."""

    def __init__(self) -> None:
        self._fd = timerfd.open_timer(time.CLOCK_BOOTTIME)

    def fileno(self) -> int:
        return self._fd

    def set(self, deadline: int | None) -> None:
        """Set the deadline in nanoseconds, or none. After a deadline in the past, the alarm rings at once."""
        timerfd.arm_at(self._fd, deadline)

    def clear(self) -> None:
        """Acknowledge a ring."""
        timerfd.take_expiry(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
