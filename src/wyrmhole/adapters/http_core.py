"""Network backends for httpcore and httpcore2, which have the same interface.

The connection pools of httpcore accept a network backend; httpx and httpx2 do not. Therefore `http_transport.py` has a
transport with a pool on these backends. `core` is the module whose exceptions are raised.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn, Protocol, TypeAlias

from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.library.services.dialer import Dialer
from wyrmhole.library.services.service import reason_of

EXCEPTIONS = (
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "TimeoutException",
    "ConnectError",
    "ReadError",
    "WriteError",
    "NetworkError",
    "UnsupportedProtocol",
    "ProxyError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "ProtocolError",
)
"""Exceptions with the same name in httpcore and httpx. Subclasses come before their bases."""


class HttpUrl(Protocol):
    """`httpx.URL`."""

    @property
    def raw_scheme(self) -> bytes: ...
    @property
    def raw_host(self) -> bytes: ...
    @property
    def port(self) -> int | None: ...
    @property
    def raw_path(self) -> bytes: ...


class HttpHeaders(Protocol):
    """`httpx.Headers`."""

    @property
    def raw(self) -> list[tuple[bytes, bytes]]: ...


class HttpRequest(Protocol):
    """`httpx.Request`."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> HttpUrl: ...
    @property
    def headers(self) -> HttpHeaders: ...
    @property
    def stream(self) -> object: ...
    @property
    def extensions(self) -> Mapping[str, object]: ...


class AsyncByteStream(Protocol):
    """The body of a response of httpcore."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class ByteStream(Protocol):
    """The same, blocking."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


SocketOption: TypeAlias = tuple[int, int, int]


@contextmanager
def translated(timed_out: type[Exception], failed: type[Exception], what: str) -> Iterator[None]:
    """Convert OSError and TimeoutError to exceptions of httpcore, with the reason.

    `what` is the text for a time limit of asyncio or of a socket, whose exception has no useful text.
    """
    try:
        yield
    except TimeoutError as error:
        text = str(error)
        raise timed_out(what if text in WITHOUT_REASON else text) from error
    except OSError as error:
        raise failed(str(error) if isinstance(error, ssl.SSLError) else reason_of(error)) from error


WITHOUT_REASON = ("", "timed out", "The read operation timed out", "The write operation timed out")


@contextmanager
def in_terms_of(client: ModuleType, core: ModuleType) -> Iterator[None]:
    """Convert exceptions of httpcore to those of httpx."""
    try:
        yield
    except Exception as error:
        for name in EXCEPTIONS:
            if isinstance(error, getattr(core, name)):
                raise getattr(client, name)(str(error)) from error
        raise


def core_request(core: ModuleType, request: HttpRequest) -> object:
    """Convert a request of httpx to one of httpcore."""
    url = core.URL(
        scheme=request.url.raw_scheme,
        host=request.url.raw_host,
        port=request.url.port,
        target=request.url.raw_path,
    )
    return core.Request(
        method=request.method,
        url=url,
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


# asyncio


class AsyncStream:
    """A connected socket. Its streams are created for the first byte, or by `start_tls`."""

    def __init__(self, sock: socket.socket, core: ModuleType) -> None:
        self._sock = sock
        self._core = core
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._sock)
        return self._streams

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with translated(self._core.ReadTimeout, self._core.ReadError, f"received nothing within {timeout} s"):
            async with asyncio.timeout(timeout):
                reader, _ = await self._opened()
                return await reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with translated(self._core.WriteTimeout, self._core.WriteError, f"could not send within {timeout} s"):
            async with asyncio.timeout(timeout):
                _, writer = await self._opened()
                writer.write(buffer)
                await writer.drain()

    async def aclose(self) -> None:
        if self._streams is None:
            self._sock.close()
        else:
            self._streams[1].close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncStream:
        silent = f"the TLS handshake with {server_hostname} took longer than {timeout} s"
        with translated(self._core.ConnectTimeout, self._core.ConnectError, silent):
            try:
                async with asyncio.timeout(timeout):
                    self._streams = await asyncio.open_connection(
                        sock=self._sock, ssl=ssl_context, server_hostname=server_hostname or ""
                    )
            except BaseException:
                self._sock.close()
                raise
        return self

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":  # the pool asks this for an idle connection, to learn whether the server closed it
            return self._streams is not None and (self._streams[0].at_eof() or self._streams[1].is_closing())
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return None if self._streams is None else self._streams[1].get_extra_info(names.get(info, info))


class AsyncBackend:
    """`httpcore.AsyncNetworkBackend` on a tunnel."""

    def __init__(self, tunnel: Dialer, core: ModuleType) -> None:
        self._tunnel = tunnel
        self._core = core

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncStream:
        silent = f"{host}:{port} did not answer within {timeout} s"
        with translated(self._core.ConnectTimeout, self._core.ConnectError, silent):
            sock = await self._tunnel.connect_socket(host, port, timeout=timeout)
        return AsyncStream(with_options(sock, socket_options), self._core)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: object = None
    ) -> NoReturn:
        raise self._core.ConnectError("a tunnel has no Unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AsyncBody:
    """The body of a response, with exceptions of the client's library."""

    def __init__(self, stream: AsyncByteStream, client: ModuleType, core: ModuleType) -> None:
        self._stream, self._client, self._core = stream, client, core

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with in_terms_of(self._client, self._core):
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


# Blocking


class BlockingStream:
    def __init__(self, sock: socket.socket, core: ModuleType) -> None:
        self._sock = sock
        self._core = core

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with translated(self._core.ReadTimeout, self._core.ReadError, f"received nothing within {timeout} s"):
            self._sock.settimeout(timeout)
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with translated(self._core.WriteTimeout, self._core.WriteError, f"could not send within {timeout} s"):
            self._sock.settimeout(timeout)
            self._sock.sendall(buffer)

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> BlockingStream:
        silent = f"the TLS handshake with {server_hostname} took longer than {timeout} s"
        with translated(self._core.ConnectTimeout, self._core.ConnectError, silent):
            try:
                self._sock.settimeout(timeout)
                wrapped = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
            except BaseException:
                self._sock.close()
                raise
        return BlockingStream(wrapped, self._core)

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":
            return is_readable(self._sock)
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        looks = {"client_addr": self._sock.getsockname, "server_addr": self._sock.getpeername}
        return self._sock if info == "socket" else looks[info]() if info in looks else None


class BlockingBackend:
    """`httpcore.NetworkBackend` on a tunnel."""

    def __init__(self, tunnel: BlockingDialer, core: ModuleType) -> None:
        self._tunnel = tunnel
        self._core = core

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> BlockingStream:
        silent = f"{host}:{port} did not answer within {timeout} s"
        with translated(self._core.ConnectTimeout, self._core.ConnectError, silent):
            sock = self._tunnel.create_connection((host, port), timeout=timeout)
        return BlockingStream(with_options(sock, socket_options), self._core)

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: object = None) -> NoReturn:
        raise self._core.ConnectError("a tunnel has no Unix sockets")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class BlockingBody:
    def __init__(self, stream: ByteStream, client: ModuleType, core: ModuleType) -> None:
        self._stream, self._client, self._core = stream, client, core

    def __iter__(self) -> Iterator[bytes]:
        with in_terms_of(self._client, self._core):
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


def with_options(sock: socket.socket, options: Iterable[SocketOption] | None) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in options or ():
        sock.setsockopt(*option)
    return sock


def is_readable(sock: socket.socket) -> bool:
    """Report whether bytes or the end can be read. Unlike `select`, `poll` has no limit on descriptor numbers."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
