"""A proxy on this host whose way out is a tunnel: SOCKS5 and HTTP on one port, told apart by the first byte.

SOCKS5 begins with a 5, a request of HTTP with a letter. Both need the same user and password where there are users.
Names are resolved inside the tunnel; a client that resolves them itself (`socks5://` instead of `socks5h://` in curl)
asks outside, and nothing here can know.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wyrmhole.errors import WyrmholeError
from wyrmhole.library import socks5
from wyrmhole.library.dialer import DATAGRAM, STREAM, Dialer, HostSide, Spot, TunnelSide, is_loopback
from wyrmhole.library.service import Limits, Service, reason_of, within
from wyrmhole.library.socks_udp import UdpAssociation
from wyrmhole.library.splice import splice

if TYPE_CHECKING:
    from wyrmhole.library.http_relay import HttpClient

log = logging.getLogger(__name__)

CHUNK = 4096
"""Bytes read at once while a client says what it wants."""
SOCKS4 = 4
SOCKS4_REJECTED = b"\0\x5b" + bytes(6)


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
    spot = Spot.parse(listen)
    if users is None and not allow_open and not is_loopback(spot.host):
        raise ValueError(
            f"a proxy on {spot} would let everybody into the tunnel who reaches this host: give users, "
            "listen on 127.0.0.1, or set allow_open if that is what you want"
        )
    import_http()
    service = Service(f"proxy {spot}", limits or Limits())
    door = Door(TunnelSide(dialer), service.limits, None if users is None else dict(users))
    for sock in await HostSide().listen(spot.host, spot.port, STREAM):
        service.listen(sock, door.welcome)
    return service


def import_http() -> type[HttpClient]:
    try:
        from wyrmhole.library.http_relay import HttpClient
    except ImportError:
        raise WyrmholeError("the proxy needs h11: pip install 'wyrmhole[proxy]'") from None
    return HttpClient


class Door:
    """Who is let in, and where to."""

    def __init__(self, side: TunnelSide, limits: Limits, users: Mapping[str, str] | None) -> None:
        self._side = side
        self._limits = limits
        self._users = users

    async def welcome(self, client: socket.socket) -> None:
        """One connection, whatever it speaks."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._limits.greeting):
            first = await loop.sock_recv(client, CHUNK)
        if first[:1] == bytes((socks5.VERSION,)):
            await self._socks(client, first)
        elif first[:1].isalpha():
            await import_http()(client, first, self._connect, self._users, self._limits).run()
        elif first[:1] == bytes((SOCKS4,)):
            log.info("a client speaks SOCKS4, which has no names and no passwords: let it use socks5h://")
            await loop.sock_sendall(client, SOCKS4_REJECTED)

    async def _connect(self, host: str, port: int) -> socket.socket:
        return await within(self._limits.connect, self._side.connect(host, port, STREAM), f"{host} did not answer")

    async def _socks(self, client: socket.socket, first: bytes) -> None:
        negotiation = socks5.Negotiation(self._users)
        async with asyncio.timeout(self._limits.greeting):
            await negotiate(client, negotiation, first)
        request = negotiation.request
        if request is None:
            log.info("a SOCKS client was refused: %s", negotiation.failure)
        elif request.command == socks5.Command.CONNECT:
            await self._socks_connect(client, request, negotiation.rest)
        else:
            await self._socks_associate(client, request)

    async def _socks_connect(self, client: socket.socket, request: socks5.Request, rest: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            upstream = await self._connect(request.host, request.port)
        except OSError as error:
            log.info("%s port %d: %s", request.host, request.port, reason_of(error))
            await loop.sock_sendall(client, socks5.reply(socks5.reply_for(error)))
            return
        try:
            host, port = upstream.getsockname()[:2]
            await loop.sock_sendall(client, socks5.reply(socks5.Reply.SUCCEEDED, host, port))
        except BaseException:
            upstream.close()
            raise
        await splice(client, upstream, first=rest)

    async def _socks_associate(self, client: socket.socket, request: socks5.Request) -> None:
        """Until the client ends its TCP connection (RFC 1928, 6)."""
        loop = asyncio.get_running_loop()
        family, address = client.family, client.getsockname()
        with socket.socket(family, DATAGRAM) as listener:
            listener.bind((address[0], 0, *address[2:]))
            # RFC 1928, 4: the client tells where it will send from, or zeros when it does not know.
            relay = UdpAssociation(self._side, listener, (client.getpeername()[0], request.port))
            try:
                host, port = listener.getsockname()[:2]
                await loop.sock_sendall(client, socks5.reply(socks5.Reply.SUCCEEDED, host, port))
                while await loop.sock_recv(client, CHUNK):
                    pass
            finally:
                relay.close()


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
