"""Copy bytes between two sockets in both directions, until both have ended.

Each direction waits until its source is readable, receives into a buffer that all directions of a thread share, and
sends at once. Only bytes that the sink does not accept are kept. Until they are sent, the source is not read, so that
its sender feels the back-pressure; an idle connection holds no buffer. When a source ends, its sink is shut down for
writing and the other direction continues (half-close). An error ends both directions and resets both sockets, because a
truncated stream must not look complete.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress

SIZE = 1 << 18
"""Bytes received at once, and therefore the most that a blocked direction keeps. On loopback, 64 KiB took 0.60 CPU
seconds per GB, this size 0.43, and 1 MiB 0.28; but 1024 blocked connections hold up to two of these each, 512 MiB."""
TURNS = 4
"""Full buffers that a direction may move before it yields to others."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4
"""In seconds, and a number of probes. The connection of a host that vanished ends after two minutes."""

_threads = threading.local()


async def splice(one: socket.socket, other: socket.socket, *, first: bytes = b"") -> tuple[int, int]:
    """Take over two connected non-blocking stream sockets, copy in both directions and close them, also when cancelled.

    `first` was already received from `one`. Returns the number of bytes from `one` and from `other`.
    Raises OSError if either fails; both are reset then.
    """
    return await Splice(one, other, first).finished()


class Splice:
    def __init__(self, one: socket.socket, other: socket.socket, first: bytes) -> None:
        self._sockets = one, other
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._open = 2
        for sock in self._sockets:
            prepare(sock)
        self._directions = Direction(self, one, other, first), Direction(self, other, one, b"")

    async def finished(self) -> tuple[int, int]:
        try:
            for direction in self._directions:
                direction.start()
            await self._done
        except BaseException:
            self._close(reset=True)
            raise
        self._close(reset=False)
        return self._directions[0].moved, self._directions[1].moved

    def ended(self) -> None:
        self._open -= 1
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def failed(self, error: OSError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _close(self, *, reset: bool) -> None:
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
            close(sock, reset=reset)


class Direction:
    """One direction of a splice."""

    def __init__(self, owner: Splice, source: socket.socket, sink: socket.socket, first: bytes) -> None:
        self._owner = owner
        self._source = source
        self._sink = sink
        self._rest = memoryview(first)
        self._loop = asyncio.get_running_loop()
        self._buffer = shared_buffer()
        self.moved = 0

    def start(self) -> None:
        if self._rest:
            self._loop.add_writer(self._sink, self._writable)
        else:
            self._loop.add_reader(self._source, self._readable)

    def _readable(self) -> None:
        try:
            for _ in range(TURNS):
                size = self._source.recv_into(self._buffer)
                if not size:
                    self._end()
                    return
                sent = self._send(self._buffer[:size])
                if sent < size:
                    self._block(bytes(self._buffer[sent:size]))
                    return
                if size < SIZE:
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._owner.failed(error)

    def _send(self, data: memoryview) -> int:
        try:
            sent = self._sink.send(data)
        except BlockingIOError:
            return 0
        self.moved += sent
        return sent

    def _block(self, rest: bytes) -> None:
        self._rest = memoryview(rest)
        self._loop.remove_reader(self._source)
        self._loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        try:
            self._rest = self._rest[self._send(self._rest) :]
        except OSError as error:
            self._owner.failed(error)
            return
        if not self._rest:
            self._rest = memoryview(b"")  # releases the memory
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._readable)

    def _end(self) -> None:
        self._loop.remove_reader(self._source)
        self._sink.shutdown(socket.SHUT_WR)
        self._owner.ended()


def shared_buffer() -> memoryview:
    """Return the thread's buffer. Nothing stays in it between two events."""
    buffer: memoryview | None = getattr(_threads, "buffer", None)
    if buffer is None:
        buffer = _threads.buffer = memoryview(bytearray(SIZE))
    return buffer


def prepare(sock: socket.socket) -> None:
    """Set TCP options; other socket types are left alone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def close(sock: socket.socket, *, reset: bool = False) -> None:
    """Close a socket. With `reset`, the other end sees a reset instead of an end of the stream."""
    if reset and sock.fileno() >= 0:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


DRAIN, DRAIN_CHUNK = 1 << 20, 1 << 16
DRAIN_SECONDS = 2.0


async def drain(sock: socket.socket) -> None:
    """Read and discard input for up to `DRAIN_SECONDS`. Closing a socket with unread bytes sends a reset, which would
    destroy the answer that is in flight (RFC 9112, 9.6)."""
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DRAIN_SECONDS):
            for _ in range(DRAIN // DRAIN_CHUNK):
                if not await asyncio.get_running_loop().sock_recv(sock, DRAIN_CHUNK):
                    return
