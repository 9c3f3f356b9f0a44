"""A timer that is a descriptor (timerfd_create(2)), for Pythons whose `os` does not offer one yet."""

from __future__ import annotations

import ctypes
import os
import struct
import time

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_ITIMERSPEC = struct.Struct("@llll")


def open_timer() -> int:
    """A disarmed, non-blocking, close-on-exec timer descriptor. Raises OSError, also where the libc has no timerfd."""
    return _call("timerfd_create", ctypes.c_int(time.CLOCK_MONOTONIC), ctypes.c_int(_TFD_NONBLOCK | _TFD_CLOEXEC))


def arm(fileno: int, seconds: float, interval: float = 0.0) -> None:
    """Make the descriptor readable after `seconds`, and then each `interval` unless that is 0. Raises OSError."""
    specification = _ITIMERSPEC.pack(*_split(interval), *_split(seconds))
    _call("timerfd_settime", ctypes.c_int(fileno), ctypes.c_int(0), ctypes.c_char_p(specification), None)


def _split(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * 1e9), 1_000_000_000)


def take_expiry(fileno: int) -> bool:
    """Whether the timer fired since it was last asked."""
    try:
        return bool(os.read(fileno, 8))
    except BlockingIOError:
        return False


def _call(name: str, *arguments: object) -> int:
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"the C library has no {name}")
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
