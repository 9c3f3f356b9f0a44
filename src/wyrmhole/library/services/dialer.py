"""The two sides of a service: this host, and the inside of a tunnel. Either can connect and listen.

`Dialer` is the part of a tunnel that forwards and proxies use, so that they can be tested without one.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from wyrmhole.library.common.arguments import named_type
from wyrmhole.library.common.own_threads import getaddrinfo
from wyrmhole.library.common.socket_address import AddressInfo, SocketAddress
from wyrmhole.library.common.time_limit import deadline
from wyrmhole.wire.endpoint import MAX_PORT

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {"tcp": STREAM, "udp": DATAGRAM}
BACKLOG = 128
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""The errors of `bind` if a family has no address, for example if IPv6 is switched off."""


class Dialer(Protocol):
    """The part of a tunnel that services use. Sockets are non-blocking, and names are resolved inside."""

    async def connect_socket(
        self,
        host: str,
        port: int,
        *,
        family: int = 0,
        type: int = socket.SOCK_STREAM,
        timeout: float | None = None,
    ) -> socket.socket:
        """Connect inside the tunnel.

        Raises OSError (also socket.gaierror), or TimeoutError with the tunnel's explanation.
        """

    async def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
    ) -> Sequence[AddressInfo]:
        """Like socket.getaddrinfo."""

    async def open_socket(self, family: int, type: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket that is neither bound nor connected."""


class Side(Protocol):
    """A network to connect to and listen on.

    Both methods raise OSError; `connect` raises TimeoutError after `timeout` s.
    """

    async def connect(self, host: str, port: int, kind: int, timeout: float) -> socket.socket: ...

    async def listen(self, host: str, port: int, kind: int) -> list[socket.socket]: ...


@dataclass(frozen=True, slots=True)
class HostPort:
    """HOST:PORT, such as `db.internal:5432`, `[::1]:53` or `:80`. `/udp` or `/tcp` may follow."""

    host: str
    port: int
    proto: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse HOST:PORT. Raises TypeError or ValueError with the expected form."""
        if not isinstance(text, str):
            given = f" {text}" if isinstance(text, int) else ""
            raise TypeError(
                f"HOST:PORT must be a str such as '127.0.0.1:5432' or ':80', not the {named_type(text)}{given}"
            )
        body, slash, proto = text.partition("/")
        host, colon, port = body.rpartition(":")
        if not colon or (slash and proto not in KINDS) or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:5432, [::1]:53/udp or :80")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, such as [::1]:80")
        if int(port) > MAX_PORT:
            raise ValueError(f"{text!r}: the port must be at most {MAX_PORT}")
        return cls(host.strip("[]"), int(port), proto or None)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HostSide:
    """The network of this host, with its own resolver. An empty host means loopback."""

    async def connect(self, host: str, port: int, kind: int, timeout: float) -> socket.socket:
        async with deadline(timeout, lambda: f"{HostPort(host, port)} did not answer within {timeout:g} s"):
            return await self._connect(host, port, kind)

    async def _connect(self, host: str, port: int, kind: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        infos = await getaddrinfo(host, port, type=kind)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, f"{host!r} has no address")
        for family, _, _, _, address in infos:
            sock = non_blocking(socket.socket(family, kind))
            try:
                await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    async def listen(self, host: str, port: int, kind: int) -> list[socket.socket]:
        if not host:
            loopback = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
            return await bind_all(loopback, kind, socket.socket, optional=True)
        infos = await getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        return await bind_all([(info[0], info[4]) for info in infos], kind, socket.socket)


class TunnelSide:
    """The network inside a tunnel. An empty host to listen on means all addresses of the tunnel."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    async def connect(self, host: str, port: int, kind: int, timeout: float) -> socket.socket:
        return non_blocking(await self._dialer.connect_socket(host, port, type=kind, timeout=timeout))

    async def listen(self, host: str, port: int, kind: int) -> list[socket.socket]:
        if not host:
            everything = [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))]
            return await bind_all(everything, kind, self._dialer.open_socket, optional=True)
        infos = await self._dialer.getaddrinfo(host, port, type=kind)
        return await bind_all([(info[0], info[4]) for info in infos], kind, self._dialer.open_socket)

    async def socket(self, family: int, kind: int) -> socket.socket:
        return await open_non_blocking(self._dialer.open_socket, family, kind)

    async def addresses(self, host: str, port: int, kind: int) -> Sequence[AddressInfo]:
        return await self._dialer.getaddrinfo(host, port, type=kind)


def non_blocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock


OpenHostSocket = Callable[[int, int], socket.socket | Awaitable[socket.socket]]


async def open_non_blocking(open_socket: OpenHostSocket, family: int, kind: int) -> socket.socket:
    result = open_socket(family, kind)
    return non_blocking(await result if inspect.isawaitable(result) else result)


async def bind_all(
    addresses: Sequence[tuple[int, SocketAddress]], kind: int, open_socket: OpenHostSocket, *, optional: bool = False
) -> list[socket.socket]:
    """Return a listening socket for each address. If the port is 0, all get the same free port.

    With `optional`, a family without an address is left out if another has one. On OSError, all sockets are closed.
    """
    bound: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses:
        try:
            bound.append(await _bind(family, same_port(address, bound), kind, open_socket))
        except OSError as error:
            failure = error
            if not (optional and error.errno in ABSENT):
                break
            failure = None if bound else error
    if failure is not None or not bound:
        for sock in bound:
            sock.close()
        raise failure or OSError(errno.EADDRNOTAVAIL, "no address to listen on")
    return bound


async def _bind(family: int, address: SocketAddress, kind: int, open_socket: OpenHostSocket) -> socket.socket:
    sock = await open_non_blocking(open_socket, family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == STREAM:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        message = f"cannot listen on {address[0]} port {address[1]}: {error.strerror}"
        raise OSError(error.errno, message) from None
    except BaseException:
        sock.close()
        raise
    return sock


def same_port(address: SocketAddress, bound: Sequence[socket.socket]) -> SocketAddress:
    return (address[0], bound[0].getsockname()[1], *address[2:]) if bound and address[1] == 0 else address


def is_loopback(host: str) -> bool:
    """Report whether only programs on this host can reach a listener on this address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")
