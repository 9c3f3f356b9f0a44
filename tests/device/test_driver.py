"""The driver's loop under load, with fakes for everything around it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from wyrmhole.device.driver import Driver
from wyrmhole.engine.contract import Engine
from wyrmhole.protocol.constants import SECOND, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.data_plane import HandshakeDatagram
from wyrmhole.protocol.interface import Interface
from wyrmhole.wire.endpoint import Endpoint


class Flood:
    """An engine that always has a handshake message, with `waiting` more queued, and an interface that ignores them."""

    def __init__(self, waiting: int, *, shares_interpreter: bool) -> None:
        self.shares_interpreter = shares_interpreter
        self.fd = os.eventfd(1)
        self.waiting = waiting
        self.polls = 0

    def fileno(self) -> int:
        return self.fd

    def poll_reports(self, limit: int) -> list[HandshakeDatagram]:
        self.polls += 1
        return [HandshakeDatagram(bytes(148), Endpoint("192.0.2.1", 7), None, self.waiting)]

    def commit(self) -> None: ...
    def handle_report(self, report: object, now: int) -> None: ...
    def handle_timeout(self, now: int) -> None: ...
    def poll_event(self) -> None: ...
    def poll_timeout(self) -> None: ...


class SlowClock:
    """A clock that advances by a minute per reading."""

    def __init__(self) -> None:
        self._minutes: Iterator[int] = iter(range(10**9))

    def boottime(self) -> int:
        return next(self._minutes) * 60 * SECOND

    wall = boottime

    def random(self, size: int) -> bytes:
        return bytes(size)


@pytest.mark.parametrize(
    ("waiting", "shares", "rests"),
    [
        (UNDER_LOAD_QUEUE_DEPTH, True, True),
        (UNDER_LOAD_QUEUE_DEPTH - 1, True, False),
        (UNDER_LOAD_QUEUE_DEPTH, False, False),
    ],
)
def test_under_load_the_loop_pauses_for_the_portable_engine(waiting: int, shares: bool, rests: bool) -> None:
    async def run() -> int:
        flood = Flood(waiting, shares_interpreter=shares)
        ignore: Any = lambda _: None  # noqa: E731
        driver = Driver(
            cast(Interface, flood), cast(Engine, flood), SlowClock(), on_tun=ignore, on_failure=ignore, on_event=ignore
        )
        driver.start()
        for _ in range(20):
            await asyncio.sleep(0)
        driver.stop()
        os.close(flood.fd)
        return flood.polls

    polls = asyncio.run(run())
    assert polls == 1 if rests else polls > 5
