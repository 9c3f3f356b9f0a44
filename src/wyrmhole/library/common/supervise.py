"""Background tasks that log unexpected errors. Periodic ones survive them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)


class Repeated:
    """Runs `step` every `interval` seconds until it is closed, one at a time.

    An error is logged and does not prevent the next step. A timer starts each step, because a single long-running task
    would end if the program cancels all tasks.
    """

    def __init__(self, name: str, interval: float, step: Callable[[], Coroutine[object, None, None]]) -> None:
        self._name = name
        self._interval = interval
        self._step = step
        self._running: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(interval, self._begin)

    def close(self) -> None:
        self._timer.cancel()
        if self._running is not None:
            self._running.cancel()

    def _begin(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._begin)
        if self._running is None or self._running.done():
            self._running = watched(f"{self._name} (next attempt in {self._interval:g} s)", self._step())


def watched(name: str, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
    """Start a task whose error is logged as soon as it occurs."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: report(name, done))
    return task


def report(name: str, done: asyncio.Task[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        report_error(name, error)


def report_error(name: str, error: BaseException) -> None:
    log.error("%s failed with an unexpected error", name, exc_info=error)
