"""What a forward and a proxy have in common: listeners, a bounded number of connections, and an end.

A connection counts from its acceptance. One that has not said what it wants, or not proved who it is, is unproven: few
of those are held, and when there are too many the oldest of the address that has the most makes room. So strangers
who say nothing cost a bounded number of descriptors, and keep nobody else out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from wyrmhole.library.common.arguments import NOT_PICKLED
from wyrmhole.library.common.descriptors import SERVICES, room
from wyrmhole.library.common.explain import CONNECT_FAILED
from wyrmhole.library.common.supervise import watched
from wyrmhole.library.services.dialer import is_loopback

log = logging.getLogger(__name__)

TOO_LATE = "it took too long"
"""What a time limit of asyncio says, in words."""
PAUSE = 1.0
"""Seconds without accepting after it failed, as when descriptors ran out; asyncio waits as long."""

CONNECTION_COST = 2
"""Descriptors of a connection: the client's, and that of the other side."""
COMPLAINT_SECONDS = 60.0
"""Between two warnings of a service about one thing."""

Handler = Callable[[socket.socket], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one service. Times in seconds.

    `connections`: at once; more wait in the kernel's backlog. `flows`: of UDP; the one longest idle makes room. Both
    fit in the process's limit of descriptors, which all its services share. `unproven`: connections that have not yet
    said what they want (None: an eighth). `per_source`: connections, or flows, of one address other than this host's
    own (None: half). `greeting`: for a client to say what it wants, its password included. `connect`: for the
    target to answer. `idle`: a UDP flow without packets (RFC 4787, 4.3: never under two minutes). `keep_alive`: an HTTP
    client between two requests.
    """

    connections: int = field(default_factory=lambda: max(1, min(1024, room() // CONNECTION_COST)))
    flows: int = field(default_factory=lambda: max(1, min(1024, room() // 2)))
    unproven: int | None = None
    per_source: int | None = None
    greeting: float = 10.0
    connect: float = 20.0
    idle: float = 120.0
    keep_alive: float = 60.0

    @property
    def most_unproven(self) -> int:
        return self.unproven or max(1, self.connections // 8)

    def share(self, whole: int) -> int:
        """Of `connections` or `flows`, for one address."""
        return self.per_source or max(1, whole // 2)


class Closable(Protocol):
    """Something with an end of its own, as a UDP relay."""

    def close(self) -> None: ...


class Service:
    """A running forward, exposure or proxy. Ends with `close()`, with its `async with` block or with its tunnel."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self._sockets: list[socket.socket] = []
        self._addresses: list[tuple[str, int]] = []
        self._parts: list[Closable] = []
        self._slots = asyncio.Semaphore(limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers = 0
        self._unproven: OrderedDict[socket.socket, tuple[str, asyncio.Task[None]]] = OrderedDict()
        self._sources: Counter[str] = Counter()
        self._complained: dict[str, float] = {}
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"{self.connections} connections"
        return f"<{self.name}, {state}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(NOT_PICKLED)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener: the real ports where 0 was asked for."""
        return list(self._addresses)

    @property
    def connections(self) -> int:
        """How many are open, besides the listeners and the flows of UDP."""
        return self._handlers

    @property
    def unproven(self) -> int:
        """How many of them have not yet said what they want."""
        return len(self._unproven)

    def listen(self, sock: socket.socket, handle: Handler, *, greets: bool = False) -> None:
        """Accept there; `handle` owns what it is given and closes it. `greets`: connections are unproven until
        `prove`."""
        self._note(sock)
        # Also when it is cancelled before its first step, or by a program that cancels every task.
        self._start(self._accept(sock, handle, greets)).add_done_callback(partial(self._listened, sock))

    def relay(self, sock: socket.socket, part: Closable) -> None:
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

    def prove(self, sock: socket.socket) -> None:
        """This client said what it wants, and may."""
        self._unproven.pop(sock, None)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = watched(self.name, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, handle: Handler, greets: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            while not SERVICES.take(CONNECTION_COST):
                self._complain("no new connections: the process's descriptors are used up (raise ulimit -n)")
                await asyncio.sleep(PAUSE)
            try:
                sock, address = await loop.sock_accept(listener)
            except BaseException as error:
                self._release()
                if not isinstance(error, OSError):
                    raise
                await self._could_not_accept(error)
            else:
                self._admit(sock, address[0].partition("%")[0] if address else "", handle, greets)

    def _admit(self, sock: socket.socket, source: str, handle: Handler, greets: bool) -> None:
        """Handle a connection, unless its source has too many."""
        if not is_loopback(source) and self._sources[source] >= self.limits.share(self.limits.connections):
            self._complain(f"a connection was refused: {source} has {self._sources[source]} already")
            sock.close()
            self._release()
            return
        self._sources[source] += 1
        self._handlers += 1
        task = self._start(self._handle(sock, handle))
        task.add_done_callback(partial(self._handled, sock, source))
        if greets:
            if len(self._unproven) >= self.limits.most_unproven:
                self._make_room()
            self._unproven[sock] = source, task

    def _make_room(self) -> None:
        """End the oldest unproven connection of the source that has the most."""
        most, _ = Counter(source for source, _ in self._unproven.values()).most_common(1)[0]
        sock = next(sock for sock, (source, _) in self._unproven.items() if source == most)
        _, task = self._unproven.pop(sock)
        self._complain(f"connections that say nothing are ended early: there are {self.limits.most_unproven} of them")
        task.cancel()

    def _complain(self, reason: str) -> None:
        """Warn, but not for each stranger."""
        now, kind = asyncio.get_running_loop().time(), reason.partition(":")[0]
        if now - self._complained.get(kind, -COMPLAINT_SECONDS) >= COMPLAINT_SECONDS:
            self._complained[kind] = now
            log.warning("%s: %s", self.name, reason)

    async def _could_not_accept(self, error: OSError) -> None:
        """A connection that was reset before it was accepted is nothing; a host that ran out needs time."""
        if error.errno != errno.ECONNABORTED:
            log.warning("%s: no new connections for %g s: %s", self.name, PAUSE, error)
            await asyncio.sleep(PAUSE)

    async def _handle(self, sock: socket.socket, handle: Handler) -> None:
        try:
            await handle(sock)
        except (OSError, EOFError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else error
            log.debug("%s: a connection ended: %s", self.name, reason)

    def _handled(self, sock: socket.socket, source: str, _: asyncio.Task[None]) -> None:
        """Also after a handler that was cancelled before its first step."""
        self._unproven.pop(sock, None)
        sock.close()
        self._handlers -= 1
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        self._release()

    def _release(self) -> None:
        SERVICES.give(CONNECTION_COST)
        self._slots.release()


def reason_of(error: OSError) -> str:
    """Why it failed, for people, without the address, which they have already. asyncio hides the system's words behind
    "Connect call failed"."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("and then")]
    return "; ".join([_cause_of(error), *notes])


def _cause_of(error: OSError) -> str:
    text = error.strerror or str(error) or (TOO_LATE if isinstance(error, TimeoutError) else type(error).__name__)
    if isinstance(error, socket.gaierror) or not error.errno or not text.startswith(CONNECT_FAILED):
        return text
    return text.partition("): ")[2] or os.strerror(error.errno)
