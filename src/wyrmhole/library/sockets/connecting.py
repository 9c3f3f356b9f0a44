"""Connect to one of several addresses on an event loop: Happy Eyeballs (RFC 8305, section 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from wyrmhole.library.stacks.stack import Pending, Socket

ATTEMPT_DELAY = 0.25
"""Seconds before the next address is tried as well (RFC 8305, 8)."""

ConnectAttempt = Callable[[], Awaitable[Socket]]


async def complete(pending: Pending) -> Socket:
    """Wait for a connection without blocking the loop. Raises the connection's error and closes the socket."""
    if pending.done:
        return pending.finish()
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fileno = pending.fileno()
    loop.add_writer(fileno, _settle, ready)
    try:
        await ready
    except BaseException:
        loop.remove_writer(fileno)
        pending.socket.close()
        raise
    loop.remove_writer(fileno)
    return pending.finish()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def first_connected(attempts: Sequence[ConnectAttempt], delay: float = ATTEMPT_DELAY) -> Socket:
    """Return the first success and cancel the other attempts.

    Raises the first attempt's error, with the others as notes.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    race = _Race()
    try:
        for attempt in attempts:
            race.start(attempt)
            if (winner := await race.wait(delay)) is not None:
                return winner
        if (winner := await race.wait(None)) is not None:
            return winner
    finally:
        race.end()
    raise race.failure()


class _Race:
    def __init__(self) -> None:
        self._order: list[asyncio.Task[Socket]] = []
        self._running: set[asyncio.Task[Socket]] = set()
        self._winner: asyncio.Task[Socket] | None = None

    def start(self, attempt: ConnectAttempt) -> None:
        task = asyncio.ensure_future(attempt())
        self._order.append(task)
        self._running.add(task)

    async def wait(self, delay: float | None) -> Socket | None:
        """Wait for a success, the failure of the newest attempt, or the delay; without a delay, until all have
        failed."""
        while self._running:
            done, self._running = await asyncio.wait(self._running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    self._winner = task
                    return task.result()
            if delay is not None and (not done or self._order[-1] in done):
                return None
        return None

    def end(self) -> None:
        for task in self._order:
            if task is not self._winner:
                task.add_done_callback(_close_result)
                task.cancel()

    def failure(self) -> BaseException:
        failures = [error for task in self._order if (error := task.exception()) is not None]
        for other in failures[1:]:
            failures[0].add_note(f"and then: {other}")
        return failures[0]


def _close_result(task: asyncio.Task[Socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
