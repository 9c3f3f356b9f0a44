"""A timer that is a descriptor (timerfd_create(2)), for Pythons whose `os` does not offer one yet."""

from __future__ import annotations

import os
import time

from wyrmhole.system import libc


def open_timer(clock: int = time.CLOCK_MONOTONIC) -> int:
    """A disarmed, non-blocking, close-on-exec timer descriptor. Raises OSError, also where the libc has no timerfd."""
    return libc.timerfd_create(clock)


def arm(fileno: int, seconds: float, interval: float = 0.0) -> None:
    """Make the descriptor readable after `seconds`, and then each `interval` unless that is 0. Raises OSError."""
    libc.timerfd_settime(fileno, round(seconds * 1e9), round(interval * 1e9), absolute=False)


def arm_at(fileno: int, deadline: int | None) -> None:
    """Make the descriptor readable at this time of its clock (in nanoseconds), at once if it is past; None: never.
    Raises OSError."""
    # A time of 0 would disarm the timer.
    libc.timerfd_settime(fileno, 0 if deadline is None else max(deadline, 1), 0, absolute=True)


def take_expiry(fileno: int) -> bool:
    """Whether the timer fired since it was last asked."""
    try:
        return bool(os.read(fileno, 8))
    except BlockingIOError:
        return False
