"""The library's own threads: their results are never leaked, however the caller ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

from tests.netns.host import until
from wyrmhole.library.common.own_threads import OwnThreads, getaddrinfo


class Made:
    """Something that must be closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def maker(made: Made, started: threading.Event, release: threading.Event) -> Callable[[], Made]:
    def work() -> Made:
        started.set()
        assert release.wait(10)
        return made

    return work


def test_result_and_exception_of_the_work_are_passed_on() -> None:
    def fail() -> None:
        raise KeyError("k")

    async def scenario() -> None:
        threads = OwnThreads(2)
        assert await threads.run(lambda: 7) == 7
        with pytest.raises(KeyError):
            await threads.run(fail)

    asyncio.run(scenario())


def test_result_for_a_cancelled_caller_is_discarded() -> None:
    made, started, release = Made(), threading.Event(), threading.Event()

    async def scenario() -> None:
        task = asyncio.ensure_future(OwnThreads(1).run(maker(made, started, release), unwanted=Made.close))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        async with asyncio.timeout(10):
            while not made.closed:
                await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_result_after_the_end_of_the_loop_is_discarded() -> None:
    made, started, release = Made(), threading.Event(), threading.Event()

    async def scenario() -> None:
        asyncio.ensure_future(OwnThreads(1).run(maker(made, started, release), unwanted=Made.close))  # noqa: RUF006
        await asyncio.to_thread(started.wait, 10)

    asyncio.run(scenario())
    release.set()
    until(lambda: made.closed, "it is closed")


def test_result_that_was_never_fetched_is_discarded() -> None:
    """The loop stops after the thread's end, before the caller resumes."""
    made, started, release = Made(), threading.Event(), threading.Event()
    release.set()
    loop = asyncio.new_event_loop()
    task = loop.create_task(OwnThreads(1).run(maker(made, started, release), unwanted=Made.close))
    loop.call_soon(lambda: loop.call_soon(loop.stop))
    loop.run_forever()
    assert started.wait(10)
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    until(lambda: made.closed, "it is closed")


def test_number_of_threads_is_limited() -> None:
    running: list[int] = []
    most = 0
    lock, release = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal most
        with lock:
            running.append(1)
            most = max(most, len(running))
        assert release.wait(10)
        with lock:
            running.pop()

    async def scenario() -> None:
        threads = OwnThreads(3)
        tasks = [asyncio.ensure_future(threads.run(work)) for _ in range(10)]
        while most < 3:
            await asyncio.sleep(0.001)
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert most == 3


def test_work_runs_on_the_loop_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        async with asyncio.timeout(10):
            assert await OwnThreads(1).run(threading.get_ident) == threading.get_ident()

    asyncio.run(scenario())


def test_look_up_of_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread was started"))
    found = asyncio.run(getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
    assert [info[4] for info in found] == [("127.0.0.1", 80)]
