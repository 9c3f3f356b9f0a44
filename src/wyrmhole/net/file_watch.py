"""Notify an asyncio loop of changes of one file with inotify, without polling.

The removal of a bound Unix socket is reported as a change of attributes (the link count), like chmod, because the
socket keeps the inode. The caller therefore has to examine the path after each event.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from wyrmhole.system import libc

_EVENTS = libc.IN_ATTRIB | libc.IN_DELETE_SELF | libc.IN_MOVE_SELF | libc.IN_DONT_FOLLOW

FALLBACK_SECONDS = 5.0
"""Interval of the callbacks if inotify is not available (its limits per user are small)."""


class FileWatch:
    """Calls `on_change` on the running loop after a change of the file at `path`, and sometimes without a change."""

    def __init__(self, path: str, on_change: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        try:
            self._fd = _open_inotify(path)
            self._loop.add_reader(self._fd, self._handle_events)
        except OSError:
            self._arm_timer()

    def close(self) -> None:
        """Stop watching. Idempotent. No callback runs afterwards."""
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


def _open_inotify(path: str) -> int:
    """Raises OSError."""
    fd = libc.inotify_init()
    try:
        libc.inotify_add_watch(fd, path, _EVENTS)
    except OSError:
        os.close(fd)
        raise
    return fd
