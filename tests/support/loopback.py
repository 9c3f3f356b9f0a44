"""A stand-in for a tunnel, whose inside is the loopback of this host and whose names are a table; and servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from wyrmhole.library.common.socket_address import AddressInfo
from wyrmhole.library.names.address_info import family_of, info, literal

T = TypeVar("T")
PATIENCE = 20.0
"""Limit in seconds for a scenario, many times what one takes."""


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario on a new loop. Raises TimeoutError after the limit."""

    async def limited() -> T:
        async with asyncio.timeout(PATIENCE):
            return await scenario

    return asyncio.run(limited())


class Loopback:
    """Has the methods of `Dialer`. `asked` lists the names that were looked up, `opened` the sockets that were made."""

    def __init__(self, **names: str) -> None:
        self.names = {name.replace("_", "."): address for name, address in names.items()}
        self.asked: list[str] = []
        self.opened: list[socket.socket] = []

    async def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
    ) -> list[AddressInfo]:
        address = literal(host)
        if address is None:
            self.asked.append(host)
            address = literal(self.names.get(host, "no address"))
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, f"no {host}")
        return [info(address, port, type)]

    async def connect_socket(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM, timeout: float | None = None
    ) -> socket.socket:
        found = (await self.getaddrinfo(host, port, family=family, type=type))[0]
        sock = await self.open_socket(found[0], type)
        try:
            await asyncio.get_running_loop().sock_connect(sock, found[4])
        except BaseException:
            sock.close()
            raise
        return sock

    @property
    def still_open(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.opened)

    async def open_socket(self, family: int, type: int = socket.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(family, type)
        sock.setblocking(False)
        self.opened.append(sock)
        return sock


SILENCE = "no handshake with peer far (192.0.2.1:51820): 3 initiations unanswered in 14 s"


class Silent(Loopback):
    """A tunnel in which no host answers."""

    async def connect_socket(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM, timeout: float | None = None
    ) -> socket.socket:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.Event().wait()
        except TimeoutError:
            raise TimeoutError(f"{host}:{port} did not answer within {timeout:g} s; {SILENCE}") from None
        raise AssertionError


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Run a server that calls `serve` for each connection and closes it afterwards. Yield its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, EOFError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, host, 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo, and half-close after the client has."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await reader.read()


async def count_then_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only after the client's end, which works only if half-close is forwarded."""
    size = 0
    while data := await reader.read(1 << 16):
        size += len(data)
    writer.write(b"%d" % size)
    await writer.drain()


class Echo(asyncio.DatagramProtocol):
    """A UDP echo. `seen` holds the senders by their last payload."""

    def __init__(self) -> None:
        self.seen: dict[bytes, Any] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.seen[data] = addr
        self.transport.sendto(b"re:" + data, addr)


@asynccontextmanager
async def udp_echo(host: str = "127.0.0.1") -> AsyncIterator[tuple[int, Echo]]:
    """Run a UDP echo, and yield its port and protocol."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Echo, (host, 0))
    try:
        yield transport.get_extra_info("sockname")[1], protocol
    finally:
        transport.close()


def udp_client(host: str, port: int) -> socket.socket:
    """Yield a connected non-blocking socket."""
    sock = socket.socket(family_of(literal(host) or family_error(host)), socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect((host, port))
    return sock


def family_error(host: str) -> Any:
    raise AssertionError(f"{host} is not a literal")


async def ask(sock: socket.socket, data: bytes) -> bytes:
    """Send one packet and wait for one."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, data)
    return await loop.sock_recv(sock, 65535)


async def eventually(look: Callable[[], bool]) -> None:
    """Run the loop until the condition holds. `run` limits the wait."""
    while not look():
        await asyncio.sleep(0)
