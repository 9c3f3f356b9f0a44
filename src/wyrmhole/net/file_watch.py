"""Tells an asyncio loop when something happens to one file, by inotify. Nothing runs while nothing happens.

A bound Unix socket keeps its inode, so its removal shows as a change of attributes (the link count), the same as
chmod: what an event means is for the caller to find out by a look at the path.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

IN_ATTRIB = 0x004
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_DONT_FOLLOW = 0x0200_0000

FALLBACK_SECONDS = 5.0
"""How often the caller looks where inotify cannot be had (its limits per user are small)."""


class FileWatch:
    """Calls `on_change` on the running loop, maybe without reason, after the file at `path` was touched."""

    def __init__(self, path: str, on_change: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        try:
            self._fd = _open_inotify(path, IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_DONT_FOLLOW)
            self._loop.add_reader(self._fd, self._handle_events)
        except (OSError, AttributeError):
            self._arm_timer()

    def close(self) -> None:
        """Idempotent; no callback comes afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _handle_events(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 4096)
        self._on_change()

    def _arm_timer(self) -> None:
        self._timer = self._loop.call_later(FALLBACK_SECONDS, self._handle_timer)

    def _handle_timer(self) -> None:
        self._arm_timer()
        self._on_change()


def _open_inotify(path: str, mask: int) -> int:
    """Raises OSError, and AttributeError where the C library has no inotify."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _checked(libc.inotify_add_watch(fd, os.fsencode(path), mask))
    except OSError:
        os.close(fd)
        raise
    return fd


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
