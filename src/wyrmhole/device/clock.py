"""The only reader of the operating system's clocks and randomness.

Deadlines live on CLOCK_BOOTTIME, which goes on counting while the machine sleeps: a session that a laptop slept
through is expired when it wakes. The alarm is a timerfd on that same clock, for the same reason: an event loop's own
timers stand still during suspend.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

from wyrmhole.net import timerfd
from wyrmhole.system import libc

_TIME_ERROR = 5


class Clock(Protocol):
    def boottime(self) -> int:
        """Nanoseconds since boot, suspend counted; never goes back."""

    def wall(self) -> int:
        """Nanoseconds since 1970; may jump."""

    def random(self, size: int) -> bytes:
        """Secret bytes."""


class Boottime:
    """A function with an attribute. An engine that can read CLOCK_BOOTTIME without the interpreter does so."""

    is_boottime = True

    def __call__(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SystemClock:
    boottime = Boottime()

    def wall(self) -> int:
        return time.time_ns()

    def random(self, size: int) -> bytes:
        return os.urandom(size)


PLAUSIBLE_SECONDS = 1_700_000_000
"""Since 1970: a wall clock before November 2023 is certainly wrong."""


def is_plausible(wall: int) -> bool:
    """Whether the wall clock (nanoseconds) may be right."""
    return wall // 1_000_000_000 >= PLAUSIBLE_SECONDS


def is_synchronised() -> bool:
    """Whether the kernel knows the wall clock to be disciplined (adjtimex(2))."""
    try:
        return libc.clock_state() < _TIME_ERROR
    except OSError:
        return False


class Alarm:
    """A descriptor that becomes readable at a time of the boottime clock. Raises OSError where timerfd is missing."""

    def __init__(self) -> None:
        self._fd = timerfd.open_timer(time.CLOCK_BOOTTIME)

    def fileno(self) -> int:
        return self._fd

    def set(self, deadline: int | None) -> None:
        """Ring at the deadline (nanoseconds; one in the past rings at once), or not at all."""
        timerfd.arm_at(self._fd, deadline)

    def clear(self) -> None:
        """Consume a ring."""
        timerfd.take_expiry(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
