"""anyio through a tunnel: streams for programs on asyncio, and on trio with a tunnel of `wyrmhole.sync.open`.

stream = await connect_tcp(tunnel, "db.internal", 5432)
stream = await connect_tcp(tunnel, "intranet", 443, ssl_context=ssl.create_default_context())
"""

from __future__ import annotations

import inspect
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, overload

from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.adapters.extra import needed
from wyrmhole.library.services.dialer import Dialer

with needed("anyio"):
    import anyio
    import anyio.abc
    import anyio.to_thread
    from anyio.streams.tls import TLSStream

AnyDialer: TypeAlias = Dialer | BlockingDialer


@overload
async def connect_tcp(
    tunnel: AnyDialer, host: str, port: int, *, timeout: float | None = None
) -> anyio.abc.SocketStream: ...


@overload
async def connect_tcp(
    tunnel: AnyDialer,
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext,
    tls_hostname: str | None = None,
    timeout: float | None = None,
) -> TLSStream: ...


async def connect_tcp(
    tunnel: AnyDialer,
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext | None = None,
    tls_hostname: str | None = None,
    timeout: float | None = None,
) -> anyio.abc.SocketStream | TLSStream:
    """As anyio.connect_tcp, inside the tunnel. With `ssl_context` the handshake is done when it returns.

    `timeout` is seconds for the name and the connection; its TimeoutError says why nothing answered, which that of
    anyio's `fail_after` cannot. Raises OSError, of which ssl.SSLError and socket.gaierror are some.
    """
    sock = await connected(tunnel, host, port, timeout)
    stream = await anyio.abc.SocketStream.from_socket(sock)
    if ssl_context is None:
        return stream
    try:
        return await TLSStream.wrap(stream, hostname=tls_hostname or host, ssl_context=ssl_context)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def connected(tunnel: AnyDialer, host: str, port: int, timeout: float | None = None) -> socket.socket:
    """An asyncio tunnel connects on this loop, a blocking one in a thread."""
    connect: Callable[..., Any] | None = getattr(tunnel, "connect_socket", None)
    if connect is not None and inspect.iscoroutinefunction(connect):
        sock: socket.socket = await connect(host, port, timeout=timeout)
    else:
        blocking: Any = tunnel
        sock = await in_thread(partial(blocking.create_connection, (host, port), timeout))
    sock.setblocking(False)
    return sock


async def in_thread(connect: Callable[[], socket.socket]) -> socket.socket:
    """Cancelled, it returns at once; a socket that comes too late is closed."""
    wanted = True

    def connect_or_close() -> socket.socket:
        sock = connect()
        if not wanted:
            sock.close()
        return sock

    try:
        return await anyio.to_thread.run_sync(connect_or_close, abandon_on_cancel=True)
    except BaseException:
        wanted = False
        raise


class TunnelConnectable(anyio.abc.ByteStreamConnectable):
    """A place inside the tunnel, for what takes a `ByteStreamConnectable`."""

    def __init__(self, tunnel: AnyDialer, host: str, port: int) -> None:
        self._tunnel = tunnel
        self._host = host
        self._port = port

    async def connect(self) -> anyio.abc.SocketStream:
        """Raises anyio.ConnectionFailed."""
        try:
            return await connect_tcp(self._tunnel, self._host, self._port)
        except OSError as error:
            raise anyio.ConnectionFailed(f"{self._host} port {self._port}: {error}") from error
