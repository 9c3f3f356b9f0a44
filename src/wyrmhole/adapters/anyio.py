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
    """Like anyio.connect_tcp, inside the tunnel. With `ssl_context`, the TLS handshake is complete on return.

    `timeout` limits the seconds for the name and the connection. Unlike that of anyio's `fail_after`, its TimeoutError
    gives the reason. Raises OSError, also ssl.SSLError and socket.gaierror.
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
    """Connect on this loop with an asyncio tunnel, or in a thread with a blocking one."""
    connect: Callable[..., Any] | None = getattr(tunnel, "connect_socket", None)
    if connect is not None and inspect.iscoroutinefunction(connect):
        sock: socket.socket = await connect(host, port, timeout=timeout)
    else:
        blocking: Any = tunnel
        sock = await in_thread(partial(blocking.create_connection, (host, port), timeout))
    sock.setblocking(False)
    return sock


async def in_thread(connect: Callable[[], socket.socket]) -> socket.socket:
    """Connect in a thread. Cancellation returns at once, and a socket that arrives later is closed."""
    is_wanted = True

    def connect_or_close() -> socket.socket:
        sock = connect()
        if not is_wanted:
            sock.close()
        return sock

    try:
        return await anyio.to_thread.run_sync(connect_or_close, abandon_on_cancel=True)
    except BaseException:
        is_wanted = False
        raise


class TunnelConnectable(anyio.abc.ByteStreamConnectable):
    """A `ByteStreamConnectable` for an address inside the tunnel."""

    def __init__(self, tunnel: AnyDialer, host: str, port: int) -> None:
        self._tunnel = tunnel
        self._host = host
        self._port = port

    async def connect(self) -> anyio.abc.SocketStream:
        """Connect. Raises anyio.ConnectionFailed."""
        try:
            return await connect_tcp(self._tunnel, self._host, self._port)
        except OSError as error:
            raise anyio.ConnectionFailed(f"{self._host} port {self._port}: {error}") from error
