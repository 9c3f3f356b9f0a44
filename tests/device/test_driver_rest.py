"""The pause of the loop under load: in proportion to the time of its last batch."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from wyrmhole.device.driver import PAUSE_FACTOR, Driver
from wyrmhole.protocol.constants import SECOND, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.data_plane import HandshakeDatagram
from wyrmhole.wire.endpoint import Endpoint

TOOK = 7
"""The duration of a batch in this test, in seconds."""


def test_the_pause_is_a_multiple_of_the_batch_s_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = HandshakeDatagram(bytes(148), Endpoint("192.0.2.1", 7), None, UNDER_LOAD_QUEUE_DEPTH)
    readable = os.eventfd(1)
    looks = iter(range(1_000, 10**9, TOOK))
    ignore: Any = lambda *_: None  # noqa: E731
    anything: Any = SimpleNamespace(
        fileno=lambda: readable,
        shares_interpreter=True,
        poll_reports=lambda _limit: [flood],
        commit=ignore,
        handle_report=ignore,
        handle_timeout=ignore,
        poll_event=ignore,
        poll_timeout=ignore,
        boottime=lambda: next(looks) * SECOND,
    )
    rests: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda delay, *_: rests.append(delay))
        driver = Driver(anything, anything, anything, on_tun=ignore, on_failure=ignore, on_event=ignore)
        driver.start()
        for _ in range(10):
            await asyncio.sleep(0)
        driver.stop()

    asyncio.run(run())
    os.close(readable)
    assert rests == [PAUSE_FACTOR * TOOK]
