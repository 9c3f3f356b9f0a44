"""Background tasks that an unexpected error neither ends unseen nor, where they run for ever, ends at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def repeat(name: str, interval: float, step: Callable[[], Awaitable[None]]) -> None:
    """Run `step` every `interval` seconds for ever. An error is logged, and the next step comes all the same."""
    while True:
        await asyncio.sleep(interval)
        try:
            await step()
        except Exception:
            log.exception("%s failed; it is tried again in %g s", name, interval)


def watched(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose error is logged when it happens."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: report(name, done))
    return task


def report(name: str, done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        report_error(name, error)


def report_error(name: str, error: BaseException) -> None:
    log.error("%s ended by an unexpected error", name, exc_info=error)
