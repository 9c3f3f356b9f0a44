"""A proxy on this host whose way out is a tunnel: SOCKS5 and HTTP on one port, told apart by the first byte.

SOCKS5 begins with a 5, SOCKS4 with a 4, a request of HTTP with a letter. SOCKS5 and HTTP need the same user and
password where there are users; SOCKS4 knows none and is refused then. Whatever is refused is answered, and logged.
Names are resolved inside the tunnel; a client that resolves them itself (`socks5://` instead of `socks5h://` in curl)
asks outside, and nothing here can know.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from wyrmhole.errors import OpenProxyError, WyrmholeError, how_to_install
from wyrmhole.library.common.arguments import check_instance, check_users
from wyrmhole.library.common.descriptors import SERVICES
from wyrmhole.library.proxy import socks4, socks5, socks_udp
from wyrmhole.library.proxy.socks_udp import UdpAssociation
from wyrmhole.library.services.dialer import DATAGRAM, STREAM, Dialer, HostPort, HostSide, TunnelSide, is_loopback
from wyrmhole.library.services.service import Limits, Service, reason_of
from wyrmhole.library.services.splice import drain, splice

if TYPE_CHECKING:
    from wyrmhole.library.proxy.http_relay import HttpClient

log = logging.getLogger(__name__)

CHUNK = 4096
"""Bytes read at once while a client says what it wants."""
TLS_HANDSHAKE = 0x16


async def proxy(
    dialer: Dialer,
    listen: str = "127.0.0.1:1080",
    *,
    users: Mapping[str, str] | None = None,
    allow_open: bool = False,
    limits: Limits | None = None,
) -> Service:
    """Start a proxy. `users` maps names to passwords; without it everybody who reaches the port is let in.

    Raises ValueError for what is no HOST:PORT, and for an address that other machines reach when there are no users
    and `allow_open` is not set; OSError when it cannot listen; WyrmholeError when h11 is not installed.
    """
    spot = HostPort.parse(listen)
    check_users(users)
    check_instance("limits", limits, Limits, "a wyrmhole.library.services.service.Limits")
    if users is None and not allow_open and not is_loopback(spot.host):
        raise OpenProxyError(str(spot))
    import_http()
    service = Service(f"proxy {spot}", limits or Limits())
    door = ProxyListener(TunnelSide(dialer), service.limits, None if users is None else dict(users), service.prove)
    for sock in await HostSide().listen(spot.host, spot.port, STREAM):
        service.listen(sock, door.welcome, greets=True)
    return service


def import_http() -> type[HttpClient]:
    try:
        from wyrmhole.library.proxy.http_relay import HttpClient
    except ImportError:
        raise WyrmholeError(f"the proxy needs h11: {how_to_install('proxy')}") from None
    return HttpClient


class ProxyListener:
    """Who is let in, and where to."""

    def __init__(
        self,
        side: TunnelSide,
        limits: Limits,
        users: Mapping[str, str] | None,
        prove: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        """`prove` hears of each client that said what it wants, and may."""
        self._prove = prove
        self._side = side
        self._limits = limits
        self._users = users

    async def welcome(self, client: socket.socket) -> None:
        """One connection, whatever it speaks. It has `greeting` seconds to say all that it wants."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.greeting
        async with asyncio.timeout_at(deadline):
            first = await loop.sock_recv(client, CHUNK)
        if first[:1] == bytes((socks5.VERSION,)):
            await self._socks(client, first, deadline)
        elif first[:1] == bytes((socks4.VERSION,)):
            await self._socks4(client, first, deadline)
        elif first[:1].isalpha() or first[:1] in (b"\r", b"\n"):
            prove = partial(self._prove, client)
            await import_http()(client, first, self._connect, self._users, self._limits, prove, deadline).run()
        elif first:
            is_tls = first[0] == TLS_HANDSHAKE
            spoken = "TLS to the proxy itself: let it use http:// for the proxy" if is_tls else "neither SOCKS nor HTTP"
            log.info("a client was refused: it speaks %s", spoken)

    async def _connect(self, host: str, port: int) -> socket.socket:
        return await self._side.connect(host, port, STREAM, self._limits.connect)

    async def _socks(self, client: socket.socket, first: bytes, deadline: float) -> None:
        negotiation = socks5.Negotiation(self._users)
        async with asyncio.timeout_at(deadline):
            await negotiate(client, negotiation, first)
        request = negotiation.request
        if request is None:
            log.info("a SOCKS client was refused: %s", negotiation.failure)
            await drain(client)
            return
        self._prove(client)
        if request.command == socks5.Command.CONNECT:
            await self._socks_connect(client, request, negotiation.rest)
        elif not SERVICES.take(socks_udp.COST):
            log.warning("a SOCKS client was refused: the process's descriptors are used up (raise ulimit -n)")
            await asyncio.get_running_loop().sock_sendall(client, socks5.reply(socks5.SocksReply.GENERAL_FAILURE))
        else:
            try:
                await self._socks_associate(client, request)
            finally:
                SERVICES.give(socks_udp.COST)

    async def _socks4(self, client: socket.socket, first: bytes, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._users is not None:
                raise socks5.SocksError("SOCKS4 has no passwords: let it use socks5h://")
            async with asyncio.timeout_at(deadline):
                request = await read_socks4(client, first)
            self._prove(client)
            upstream = await self._connect(request.host, request.port)
        except (socks5.SocksError, OSError) as error:
            log.info("a SOCKS4 client was refused: %s", reason_of(error) if isinstance(error, OSError) else error)
            await loop.sock_sendall(client, socks4.reply(socks4.REJECTED))
            await drain(client)
            return
        try:
            await loop.sock_sendall(client, socks4.reply(socks4.GRANTED))
        except BaseException:
            upstream.close()
            raise
        await splice(client, upstream, first=request.rest)

    async def _socks_connect(self, client: socket.socket, request: socks5.Socks5Request, rest: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            upstream = await self._connect(request.host, request.port)
        except OSError as error:
            log.info("%s port %d: %s", request.host, request.port, reason_of(error))
            await loop.sock_sendall(client, socks5.reply(socks5.reply_for(error)))
            await drain(client)
            return
        try:
            host, port = upstream.getsockname()[:2]
            await loop.sock_sendall(client, socks5.reply(socks5.SocksReply.SUCCEEDED, host, port))
        except BaseException:
            upstream.close()
            raise
        await splice(client, upstream, first=rest)

    async def _socks_associate(self, client: socket.socket, request: socks5.Socks5Request) -> None:
        """Until the client ends its TCP connection (RFC 1928, 6)."""
        loop = asyncio.get_running_loop()
        family, address = client.family, client.getsockname()
        with socket.socket(family, DATAGRAM) as listener:
            listener.bind((address[0], 0, *address[2:]))
            # RFC 1928, 4: the client tells where it will send from, or zeros when it does not know.
            relay = UdpAssociation(self._side, listener, (client.getpeername()[0], request.port))
            try:
                host, port = listener.getsockname()[:2]
                await loop.sock_sendall(client, socks5.reply(socks5.SocksReply.SUCCEEDED, host, port))
                while await loop.sock_recv(client, CHUNK):
                    pass
            finally:
                relay.close()


async def read_socks4(client: socket.socket, data: bytes) -> socks4.Socks4Request:
    """Raises SocksError, EOFError when the client left."""
    while (request := socks4.parse(data)) is None:
        more = await asyncio.get_running_loop().sock_recv(client, CHUNK)
        if not more:
            raise EOFError("the client left before it said what it wants")
        data += more
    return request


async def negotiate(client: socket.socket, negotiation: socks5.Negotiation, first: bytes) -> None:
    """Until the client's request is there, or it is clear that none will come. Raises EOFError when it left."""
    loop = asyncio.get_running_loop()
    data = first
    while True:
        answer = negotiation.receive(data)
        if answer:
            await loop.sock_sendall(client, answer)
        if negotiation.finished:
            return
        data = await loop.sock_recv(client, CHUNK)
        if not data:
            raise EOFError("the client left before it said what it wants")
