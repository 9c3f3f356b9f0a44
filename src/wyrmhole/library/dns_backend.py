"""How dnspython gets its sockets: from the tunnel, and from nowhere else.

dnspython asks a backend for sockets and waits through it; the one here opens each inside the tunnel and connects it,
so that the kernel drops what comes from elsewhere and reports a closed port at once.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import dns.exception

if TYPE_CHECKING:  # the public module has these names, but does not say so to type checkers
    from dns._asyncbackend import Backend, DatagramSocket, StreamSocket
else:
    from dns.asyncbackend import Backend, DatagramSocket, StreamSocket

OpenSocket: TypeAlias = Callable[[int, int], socket.socket | Awaitable[socket.socket]]
"""(family, type) to a socket inside the tunnel. Raises OSError."""
T = TypeVar("T")


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:
    """Raises dns.exception.Timeout, which dnspython takes for a server to ask again."""
    try:
        return await asyncio.wait_for(awaitable, timeout)
    except TimeoutError:
        timed_out: Exception = dns.exception.Timeout(timeout=timeout)  # type: ignore[no-untyped-call]
        raise timed_out from None


class Datagrams(DatagramSocket):
    """Connected by its first question."""

    def __init__(self, family: int, sock: socket.socket) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self._sock = sock
        self._destination: Any = None

    async def sendto(self, what: bytes, destination: Any, timeout: float | None) -> int:
        if self._destination is None:
            self._sock.connect(destination)
            self._destination = destination
        await asyncio.get_running_loop().sock_sendall(self._sock, what)
        return len(what)

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, Any]:
        data = await wait_for(asyncio.get_running_loop().sock_recv(self._sock, size), timeout)
        return data, self._destination

    async def close(self) -> None:
        self._sock.close()

    async def getpeername(self) -> Any:
        return self._sock.getpeername()

    async def getsockname(self) -> Any:
        return self._sock.getsockname()


class Stream(StreamSocket):
    def __init__(self, family: int, sock: socket.socket) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._sock = sock

    async def sendall(self, what: bytes, timeout: float | None) -> None:
        await wait_for(asyncio.get_running_loop().sock_sendall(self._sock, what), timeout)

    async def recv(self, size: int, timeout: float | None) -> bytes:
        return await wait_for(asyncio.get_running_loop().sock_recv(self._sock, size), timeout)

    async def close(self) -> None:
        self._sock.close()

    async def getpeername(self) -> Any:
        return self._sock.getpeername()

    async def getsockname(self) -> Any:
        return self._sock.getsockname()


class TunnelBackend(Backend):
    """What `dns.asyncresolver` is given instead of its own."""

    def __init__(self, open_socket: OpenSocket) -> None:
        self._open_socket = open_socket

    def name(self) -> str:
        return "tunnel"

    async def make_socket(
        self,
        af: int,
        socktype: int,
        proto: int = 0,
        source: Any = None,
        destination: Any = None,
        timeout: float | None = None,
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Datagrams | Stream:
        opened = self._open_socket(af, socktype)
        sock = await opened if inspect.isawaitable(opened) else opened
        sock.setblocking(False)
        if socktype == socket.SOCK_DGRAM:
            return Datagrams(af, sock)
        try:
            await wait_for(asyncio.get_running_loop().sock_connect(sock, destination), timeout)
        except BaseException:
            sock.close()
            raise
        return Stream(af, sock)

    async def sleep(self, interval: float) -> None:
        await asyncio.sleep(interval)

    def datagram_connection_required(self) -> bool:
        return False

    async def wait_for(self, awaitable: Awaitable[T], timeout: float | None) -> T:
        return await wait_for(awaitable, timeout)
