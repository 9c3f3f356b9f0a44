"""Timers as descriptors (timerfd_create(2)), for Python versions whose `os` does not have them."""

from __future__ import annotations

import os
import time

from wyrmhole.system import libc


def open_timer(clock: int = time.CLOCK_MONOTONIC) -> int:
    """Return a disarmed, non-blocking, close-on-exec timer descriptor. Raises OSError, also if libc has no timerfd."""
    return libc.timerfd_create(clock)


def arm(fileno: int, seconds: float, interval: float = 0.0) -> None:
    """Make the descriptor readable after `seconds`, and then after each `interval` unless it is 0. Raises OSError."""
    libc.timerfd_settime(fileno, round(seconds * 1e9), round(interval * 1e9), absolute=False)


def arm_at(fileno: int, deadline: int | None) -> None:
    """Make the descriptor readable at a time of its clock, in nanoseconds; None disarms it.

    A past time makes it readable immediately. Raises OSError.
    """
    # A time of 0 would disarm the timer.
    libc.timerfd_settime(fileno, 0 if deadline is None else max(deadline, 1), 0, absolute=True)


def take_expiry(fileno: int) -> bool:
    """Return whether the timer has fired since the last call."""
    try:
        return bool(os.read(fileno, 8))
    except BlockingIOError:
        return False
