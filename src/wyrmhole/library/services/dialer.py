"""Two sides that a connection can be made or awaited on: this host, and the inside of a tunnel.

`Dialer` is all that forwards and proxies ask of a tunnel, so that they can be tested without one.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from wyrmhole.library.common.arguments import named_type
from wyrmhole.library.common.own_threads import getaddrinfo
from wyrmhole.library.common.time_limit import deadline
from wyrmhole.wire.endpoint import MAX_PORT

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {"tcp": STREAM, "udp": DATAGRAM}
BACKLOG = 128
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""What binding says where a family has no address, as where IPv6 is switched off."""


class Dialer(Protocol):
    """A tunnel, as far as needed here. Sockets are non-blocking; names are resolved inside."""

    async def connect_socket(
        self,
        host: str,
        port: int,
        *,
        family: int = 0,
        type: int = socket.SOCK_STREAM,
        timeout: float | None = None,
    ) -> socket.socket:
        """Raises OSError, of which socket.gaierror is one; TimeoutError that says what the tunnel knows."""

    async def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
    ) -> Sequence[tuple[Any, ...]]:
        """As socket.getaddrinfo."""

    async def open_socket(self, family: int, type: int = socket.SOCK_STREAM) -> socket.socket:
        """Neither bound nor connected."""


class Side(Protocol):
    """Somewhere to connect to and to listen on. Both raise OSError, and `connect` TimeoutError after `timeout` s."""

    async def connect(self, host: str, port: int, kind: int, timeout: float) -> socket.socket: ...

    async def listen(self, host: str, port: int, kind: int) -> list[socket.socket]: ...


@dataclass(frozen=True, slots=True)
class HostPort:
    """HOST:PORT, as in `db.internal:5432`, `[::1]:53` or `:80`; `/udp` or `/tcp` may follow."""

    host: str
    port: int
    proto: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises TypeError and ValueError that say what was expected."""
        if not isinstance(text, str):
            given = f" {text}" if isinstance(text, int) else ""
            raise TypeError(
                f"HOST:PORT must be a str such as '127.0.0.1:5432' or ':80', not the {named_type(text)}{given}"
            )
        body, slash, proto = text.partition("/")
        host, colon, port = body.rpartition(":")
        if not colon or (slash and proto not in KINDS) or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} is not HOST:PORT, as in 127.0.0.1:5432, [::1]:53/udp or :80")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError(f"{text!r}: an IPv6 address is written in brackets, as in [::1]:80")
        if int(port) > MAX_PORT:
            raise ValueError(f"{text!r}: ports end at {MAX_PORT}")
        return cls(host.strip("[]"), int(port), proto or None)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HostSide:
    """This host, with its own network and its own names. An empty host is loopback."""

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
    """The inside of a tunnel. An empty host to listen on is every address of the tunnel."""

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
        return await opened(self._dialer.open_socket, family, kind)

    async def addresses(self, host: str, port: int, kind: int) -> Sequence[tuple[Any, ...]]:
        return await self._dialer.getaddrinfo(host, port, type=kind)


def non_blocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock


OpenHostSocket = Callable[[int, int], socket.socket | Awaitable[socket.socket]]


async def opened(open_socket: OpenHostSocket, family: int, kind: int) -> socket.socket:
    made = open_socket(family, kind)
    return non_blocking(await made if inspect.isawaitable(made) else made)


async def bind_all(
    spots: Sequence[tuple[int, Any]], kind: int, open_socket: OpenHostSocket, *, optional: bool = False
) -> list[socket.socket]:
    """A listening socket for each address, all on one port where that was 0.

    With `optional`, a family that has no address is left out while another has one. Raises OSError; closes all then.
    """
    bound: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in spots:
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
        raise failure or OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    return bound


async def _bind(family: int, address: Any, kind: int, open_socket: OpenHostSocket) -> socket.socket:
    sock = await opened(open_socket, family, kind)
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


def same_port(address: Any, bound: Sequence[socket.socket]) -> Any:
    return (address[0], bound[0].getsockname()[1], *address[2:]) if bound and address[1] == 0 else address


def is_loopback(host: str) -> bool:
    """Whether only programs of this host reach a listener there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")
