"""The only reader of the operating system's clocks and randomness.

Deadlines live on CLOCK_BOOTTIME, which goes on counting while the machine sleeps: a session that a laptop slept
through is expired when it wakes. The alarm is a timerfd on that same clock, for the same reason: an event loop's own
timers stand still during suspend.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from typing import Protocol

_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_ITIMERSPEC = struct.Struct("@qqqq")


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


def is_synchronised() -> bool:
    """Whether the kernel knows the wall clock to be disciplined: adjtimex(2) answers TIME_ERROR (5) otherwise."""
    buffer = ctypes.create_string_buffer(512)
    return 0 <= int(ctypes.CDLL(None, use_errno=True).adjtimex(buffer)) < 5


class Alarm:
    """A descriptor that becomes readable at a time of the boottime clock. Raises OSError where timerfd is missing."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def fileno(self) -> int:
        return self._fd

    def set(self, deadline: int | None) -> None:
        """Ring at the deadline (nanoseconds; one in the past rings at once), or not at all."""
        seconds, nanoseconds = (0, 0) if deadline is None else divmod(max(deadline, 1), 1_000_000_000)
        value = _ITIMERSPEC.pack(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, value, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def clear(self) -> None:
        """Consume a ring."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
