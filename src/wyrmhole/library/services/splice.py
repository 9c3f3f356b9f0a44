"""Bytes from one socket to another, both ways, until both have ended.

How it works. Each direction waits for its source to be readable, receives into one buffer that all directions of a
thread share, and sends at once. What the sink does not take is the only thing that is kept: while there is such a rest
the source is not read, so that its sender feels the back-pressure, and an idle connection holds no buffer at all.
The end of a source becomes the end of writing of its sink and the other direction goes on (half-close). An error ends
both, the other socket with a reset too, because a cut stream must not look like a complete one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress

SIZE = 1 << 18
"""Bytes received at once, and so kept for a direction that is blocked. On loopback 64 KiB took 0.60 CPU seconds for
each GB, this 0.43, 1 MiB 0.28; but 1024 blocked connections may hold two of these each, which is to stay at 512 MiB."""
TURNS = 4
"""Full buffers that one direction may move before others have their turn."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4
"""Seconds and probes: a peer that vanished holds its connection for two minutes and not for ever."""

_threads = threading.local()


async def splice(one: socket.socket, other: socket.socket, *, first: bytes = b"") -> tuple[int, int]:
    """Takes over two connected non-blocking stream sockets and closes them, also when cancelled.

    `first` was already received from `one`. Gives the bytes that went from `one` and from `other`.
    Raises OSError when either broke; both are reset then.
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
        self._ways = Direction(self, one, other, first), Direction(self, other, one, b"")

    async def finished(self) -> tuple[int, int]:
        try:
            for way in self._ways:
                way.start()
            await self._done
        except BaseException:
            self._close(reset=True)
            raise
        self._close(reset=False)
        return self._ways[0].moved, self._ways[1].moved

    def ended(self) -> None:
        self._open -= 1
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def broke(self, error: OSError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _close(self, *, reset: bool) -> None:
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
            close(sock, reset=reset)


class Direction:
    """One direction."""

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
            self._owner.broke(error)

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
            self._owner.broke(error)
            return
        if not self._rest:
            self._rest = memoryview(b"")  # lets go of the memory behind it
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._readable)

    def _end(self) -> None:
        self._loop.remove_reader(self._source)
        self._sink.shutdown(socket.SHUT_WR)
        self._owner.ended()


def shared_buffer() -> memoryview:
    """One for each thread: nothing stays in it between two events."""
    buffer: memoryview | None = getattr(_threads, "buffer", None)
    if buffer is None:
        buffer = _threads.buffer = memoryview(bytearray(SIZE))
    return buffer


def prepare(sock: socket.socket) -> None:
    """Options of a TCP socket; what else there is goes without."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def close(sock: socket.socket, *, reset: bool = False) -> None:
    """Close, if wanted so that the other end sees a reset and not an end."""
    if reset and sock.fileno() >= 0:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


DRAIN, DRAIN_CHUNK = 1 << 20, 1 << 16
DRAIN_SECONDS = 2.0


async def drain(sock: socket.socket) -> None:
    """Read what the client still sends, for a while: closing over unread bytes is a reset, and takes the answer that
    is on its way with it (RFC 9112, 9.6)."""
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DRAIN_SECONDS):
            for _ in range(DRAIN // DRAIN_CHUNK):
                if not await asyncio.get_running_loop().sock_recv(sock, DRAIN_CHUNK):
                    return
