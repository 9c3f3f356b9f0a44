"""Run blocking work in threads that belong to the library.

A loop's default executor belongs to the program. If the program keeps its threads busy (`input()`, slow look-ups, long
jobs), the library's jobs would wait without a limit. A new thread per job also starts in the network namespace of the
calling thread, unlike the thread of a pool.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar, cast

from wyrmhole.library.common.socket_address import AddressInfo

T = TypeVar("T")
_ABSENT: Any = object()


class OwnThreads:
    """A limit of threads for each event loop. Further jobs wait until a thread ends."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    async def run(self, work: Callable[[], T], *, unwanted: Callable[[T], object] | None = None) -> T:
        """Return what `work` returns, or raise what it raises.

        `unwanted` disposes of a result whose caller was cancelled.
        """
        loop = asyncio.get_running_loop()
        slots = self._slots.setdefault(loop, asyncio.Semaphore(self._limit))
        await slots.acquire()
        job = _Job(loop, work, unwanted, slots.release)
        try:
            job.start()
            return await job.wait()
        except BaseException:
            job.abandon()
            raise


class _Job(Generic[T]):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], T],
        unwanted: Callable[[T], object] | None,
        release: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._work = work
        self._unwanted = unwanted
        self._release = release
        self._lock = threading.Lock()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._result: T = _ABSENT
        self._error: BaseException | None = None
        self._is_abandoned = False

    def start(self) -> None:
        """Start a thread. If none is available, do the work here: most jobs take milliseconds."""
        try:
            threading.Thread(target=self._run, name="wyrmhole-job", daemon=True).start()
        except RuntimeError:
            self._run()

    async def wait(self) -> T:
        await self._ended
        with self._lock:
            if self._error is not None:
                raise self._error
            result, self._result = self._result, _ABSENT
            return result

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
        self._dispose()

    def _run(self) -> None:
        try:
            result, error = self._work(), None
        except BaseException as caught:
            result, error = _ABSENT, caught
        with self._lock:
            self._result, self._error = result, error
        try:
            self._loop.call_soon_threadsafe(self._notify)
        except RuntimeError:
            # The loop has been closed.
            self.abandon()
        else:
            self._dispose()

    def _notify(self) -> None:
        self._release()
        if not self._ended.done():
            self._ended.set_result(None)

    def _dispose(self) -> None:
        with self._lock:
            if not self._is_abandoned or self._result is _ABSENT:
                return
            result, self._result = self._result, _ABSENT
        if self._unwanted is not None:
            self._unwanted(result)


HELPERS = OwnThreads(16)
"""For jobs that wait for a helper process."""
LOOK_UPS = OwnThreads(16)
"""For look-ups by the host, which may take 30 s if its name servers do not answer."""


async def getaddrinfo(host: str, port: int, *, type: int = 0, proto: int = 0, flags: int = 0) -> list[AddressInfo]:
    """Like `loop.getaddrinfo`, without the loop's executor. Raises socket.gaierror."""
    look_up = partial(_host_addresses, host, port, type, proto)
    try:
        return look_up(flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await LOOK_UPS.run(partial(look_up, flags))


def _host_addresses(host: str, port: int, type: int, proto: int, flags: int) -> list[AddressInfo]:
    # The standard library's type has a third form of addresses, for a Python without IPv6.
    return cast("list[AddressInfo]", socket.getaddrinfo(host, port, type=type, proto=proto, flags=flags))
