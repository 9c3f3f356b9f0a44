"""What a forward and a proxy have in common: listeners, a bounded number of connections, and an end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds without accepting after it failed, as when descriptors ran out; asyncio waits as long."""

Handler = Callable[[socket.socket], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one service. Times in seconds.

    `connections`: at once; more wait in the kernel's backlog. `flows`: of UDP; the one longest idle makes room.
    `greeting`: for a client to say what it wants. `connect`: for the target to answer. `idle`: a UDP flow without
    packets (RFC 4787, 4.3: never under two minutes). `keep_alive`: an HTTP client between two requests.
    """

    connections: int = 1024
    flows: int = 1024
    greeting: float = 10.0
    connect: float = 20.0
    idle: float = 120.0
    keep_alive: float = 60.0


class Part(Protocol):
    """Something with an end of its own, as a UDP relay."""

    def close(self) -> None: ...


class Service:
    """A running forward, exposure or proxy. Ends with `close()`, with its `async with` block or with its tunnel."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self._sockets: list[socket.socket] = []
        self._addresses: list[tuple[str, int]] = []
        self._parts: list[Part] = []
        self._slots = asyncio.Semaphore(limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers = 0
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"{self.connections} connections"
        return f"<{self.name}, {state}>"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener: the real ports where 0 was asked for."""
        return list(self._addresses)

    @property
    def connections(self) -> int:
        """How many are open, besides the listeners and the flows of UDP."""
        return self._handlers

    def listen(self, sock: socket.socket, handle: Handler) -> None:
        """Accept there; `handle` owns what it is given and closes it."""
        self._note(sock)
        # Also when it is cancelled before its first step, or by a program that cancels every task.
        self._start(self._accept(sock, handle)).add_done_callback(partial(self._listened, sock))

    def relay(self, sock: socket.socket, part: Part) -> None:
        """Let a part, which owns that socket, live as long as this service."""
        self._note(sock)
        self._parts.append(part)

    def close(self) -> None:
        """End all of it at once. A second time does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        for task in list(self._tasks):
            task.cancel()
        for part in self._parts:
            part.close()

    async def wait_closed(self) -> None:
        """Until `close()` has ended everything; without it, for ever."""
        await self._closed.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    def _listened(self, sock: socket.socket, _: asyncio.Task[None]) -> None:
        sock.close()
        self.close()

    def _note(self, sock: socket.socket) -> None:
        self._sockets.append(sock)
        self._addresses.append(sock.getsockname()[:2])

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, handle: Handler) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                sock, _ = await loop.sock_accept(listener)
            except BaseException as error:
                self._slots.release()
                if not isinstance(error, OSError):
                    raise
                await self._could_not_accept(error)
            else:
                self._handlers += 1
                self._start(self._handle(sock, handle)).add_done_callback(partial(self._handled, sock))

    async def _could_not_accept(self, error: OSError) -> None:
        """A connection that was reset before it was accepted is nothing; a host that ran out needs time."""
        if error.errno != errno.ECONNABORTED:
            log.warning("%s: no new connections for %g s: %s", self.name, PAUSE, error)
            await asyncio.sleep(PAUSE)

    async def _handle(self, sock: socket.socket, handle: Handler) -> None:
        try:
            await handle(sock)
        except (OSError, EOFError) as error:
            log.debug("%s: a connection ended: %s", self.name, error)

    def _handled(self, sock: socket.socket, _: asyncio.Task[None]) -> None:
        """Also after a handler that was cancelled before its first step."""
        sock.close()
        self._handlers -= 1
        self._slots.release()


async def within(seconds: float, awaitable: Awaitable[socket.socket], what: str) -> socket.socket:
    """Raises TimeoutError that says what took too long."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"{what} within {seconds:g} s") from None


def reason_of(error: OSError) -> str:
    """Why it failed, for people: asyncio hides the system's words behind "Connect call failed"."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
