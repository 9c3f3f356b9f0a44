"""The base of forwards and proxies: listeners, a bounded number of connections, and an end.

A connection counts from its acceptance. It is unproven until the client has sent its request and has authenticated. The
number of unproven connections is small; if there are too many, the oldest one of the address with the most is closed.
So silent clients cost a bounded number of descriptors, and cannot block other clients.
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
from typing import NoReturn, Protocol, Self

from wyrmhole.library.common.arguments import NOT_PICKLED
from wyrmhole.library.common.descriptors import SERVICES, room
from wyrmhole.library.common.explain import CONNECT_FAILED
from wyrmhole.library.common.supervise import watched
from wyrmhole.library.services.dialer import is_loopback

log = logging.getLogger(__name__)

TOO_LATE = "it took too long"
"""The reason for a TimeoutError without a text."""
PAUSE = 1.0
"""Seconds to pause after `accept` failed, for example without free descriptors. asyncio waits as long."""

CONNECTION_COST = 2
"""Descriptors per connection: one for the client, one for the other side."""
WARNING_SECONDS = 60.0
"""Minimum interval between two warnings of a service of the same kind."""

Handler = Callable[[socket.socket], Coroutine[object, None, None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one service. Times in seconds.

    `connections`: open connections; further ones wait in the kernel's backlog. `flows`: UDP flows; the one that was
    idle longest is dropped first. Both defaults fit in the process's limit of descriptors, which all its services
    share. `unproven`: connections before their request (None: an eighth). `per_source`: connections, or flows, of one
    address other than this host's own (None: half). `greeting`: time for a client to authenticate and send its request.
    `connect`: time for the target to answer. `idle`: time without packets until a UDP flow ends (RFC 4787, 4.3: never
    under two minutes). `keep_alive`: time between two requests of an HTTP client.
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
        """Return how many connections or flows of `whole` one address may have."""
        return self.per_source or max(1, whole // 2)


class Closable(Protocol):
    """A component that is closed with the service, such as a UDP relay."""

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
        self._warned: dict[str, float] = {}
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"{self.connections} connections"
        return f"<{self.name}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_PICKLED)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener. Port 0 is replaced by the actual port."""
        return list(self._addresses)

    @property
    def connections(self) -> int:
        """Number of open connections, without listeners and UDP flows."""
        return self._handlers

    @property
    def unproven(self) -> int:
        """Number of connections before their request."""
        return len(self._unproven)

    def listen(self, sock: socket.socket, handle: Handler, *, greets: bool = False) -> None:
        """Accept connections.

        `handle` owns each socket and closes it. With `greets`, they are unproven until `prove`.
        """
        self._note(sock)
        # A callback, because it also runs if the program cancels the task before its first step.
        self._start(self._accept(sock, handle, greets)).add_done_callback(partial(self._listened, sock))

    def relay(self, sock: socket.socket, part: Closable) -> None:
        """Close a part, which owns the socket, together with this service."""
        self._note(sock)
        self._parts.append(part)

    def close(self) -> None:
        """End the service and all its connections at once. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        for task in list(self._tasks):
            task.cancel()
        for part in self._parts:
            part.close()

    async def wait_closed(self) -> None:
        """Return after `close()`, when all connections have ended."""
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
        """Mark a client's connection as proven: it has sent its request and has authenticated."""
        self._unproven.pop(sock, None)

    def _start(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        task = watched(self.name, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, handle: Handler, greets: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            while not SERVICES.take(CONNECTION_COST):
                self._warn("no new connections: no free descriptors in this process (raise ulimit -n)")
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
        """Handle a connection, or close it if its source has too many."""
        if not is_loopback(source) and self._sources[source] >= self.limits.share(self.limits.connections):
            self._warn(f"refused a connection: {source} already has {self._sources[source]}")
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
        self._warn(f"closing silent connections early: more than {self.limits.most_unproven} have sent no request")
        task.cancel()

    def _warn(self, reason: str) -> None:
        """Log a warning, but only once per `WARNING_SECONDS` and kind."""
        now, kind = asyncio.get_running_loop().time(), reason.partition(":")[0]
        if now - self._warned.get(kind, -WARNING_SECONDS) >= WARNING_SECONDS:
            self._warned[kind] = now
            log.warning("%s: %s", self.name, reason)

    async def _could_not_accept(self, error: OSError) -> None:
        """Pause after an error of `accept`. A connection that was reset before it was accepted is not an error."""
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
        """Clean up after a handler, even one that was cancelled before its first step."""
        self._unproven.pop(sock, None)
        sock.close()
        self._handlers -= 1
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        self._release()

    def _release(self) -> None:
        SERVICES.release(CONNECTION_COST)
        self._slots.release()


def reason_of(error: OSError) -> str:
    """Return the reason of an error without the address, which the caller has. asyncio puts both into one text."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("and then")]
    return "; ".join([_cause_of(error), *notes])


def _cause_of(error: OSError) -> str:
    text = error.strerror or str(error) or (TOO_LATE if isinstance(error, TimeoutError) else type(error).__name__)
    if isinstance(error, socket.gaierror) or not error.errno or not text.startswith(CONNECT_FAILED):
        return text
    return text.partition("): ")[2] or os.strerror(error.errno)
