"""A proxy on this host that connects through a tunnel: SOCKS5 and HTTP on one port, distinguished by the first byte.

SOCKS5 begins with the byte 5, SOCKS4 with 4, and an HTTP request with a letter. If there are users, SOCKS5 and HTTP
require a user and a password; SOCKS4 has no passwords and is refused. Each refusal is answered and logged. Names are
resolved inside the tunnel. A client that resolves names itself (`socks5://` instead of `socks5h://` in curl) asks
outside, and the proxy cannot detect it.
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
"""Bytes to receive at once before the request is complete."""
TLS_HANDSHAKE = 0x16


async def proxy(
    dialer: Dialer,
    listen: str = "127.0.0.1:1080",
    *,
    users: Mapping[str, str] | None = None,
    allow_open: bool = False,
    limits: Limits | None = None,
) -> Service:
    """Start a proxy. `users` maps names to passwords; without it, any client that reaches the port is served.

    Raises ValueError if `listen` is not HOST:PORT, or if other hosts can reach it and neither `users` nor `allow_open`
    is set; OSError if it cannot listen; WyrmholeError if h11 is not installed.
    """
    address = HostPort.parse(listen)
    check_users(users)
    check_instance("limits", limits, Limits, "a wyrmhole.library.services.service.Limits")
    if users is None and not allow_open and not is_loopback(address.host):
        raise OpenProxyError(str(address))
    import_http()
    service = Service(f"proxy {address}", limits or Limits())
    clients = ProxyListener(TunnelSide(dialer), service.limits, None if users is None else dict(users), service.prove)
    for sock in await HostSide().listen(address.host, address.port, STREAM):
        service.listen(sock, clients.handle, greets=True)
    return service


def import_http() -> type[HttpClient]:
    try:
        from wyrmhole.library.proxy.http_relay import HttpClient
    except ImportError:
        raise WyrmholeError(f"the proxy needs h11: {how_to_install('proxy')}") from None
    return HttpClient


class ProxyListener:
    """Serves the clients of a proxy."""

    def __init__(
        self,
        side: TunnelSide,
        limits: Limits,
        users: Mapping[str, str] | None,
        prove: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        """`prove` is called for each client that has authenticated and sent its request."""
        self._prove = prove
        self._side = side
        self._limits = limits
        self._users = users

    async def handle(self, client: socket.socket) -> None:
        """Serve one connection of any protocol. The client has `greeting` seconds to send its request."""
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
            reason = "TLS to the proxy itself (use http:// as the proxy's URL)" if is_tls else "neither SOCKS nor HTTP"
            log.info("refused a client: it speaks %s", reason)

    async def _connect(self, host: str, port: int) -> socket.socket:
        return await self._side.connect(host, port, STREAM, self._limits.connect)

    async def _socks(self, client: socket.socket, first: bytes, deadline: float) -> None:
        negotiation = socks5.Negotiation(self._users)
        async with asyncio.timeout_at(deadline):
            await negotiate(client, negotiation, first)
        request = negotiation.request
        if request is None:
            log.info("refused a SOCKS client: %s", negotiation.failure)
            await drain(client)
            return
        self._prove(client)
        if request.command is socks5.Command.CONNECT:
            await self._socks_connect(client, request, negotiation.rest)
        elif request.command is socks5.Command.UDP_ASSOCIATE:
            await self._socks_udp(client, request)
        else:
            raise NotImplementedError(f"the negotiation accepts {request.command!r}, and nothing carries it out")

    async def _socks_udp(self, client: socket.socket, request: socks5.Socks5Request) -> None:
        if not SERVICES.take(socks_udp.COST):
            log.warning("refused a SOCKS client: no free descriptors in this process (raise ulimit -n)")
            await asyncio.get_running_loop().sock_sendall(client, socks5.reply(socks5.SocksReply.GENERAL_FAILURE))
            return
        try:
            await self._socks_associate(client, request)
        finally:
            SERVICES.release(socks_udp.COST)

    async def _socks4(self, client: socket.socket, first: bytes, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._users is not None:
                raise socks5.SocksError("SOCKS4 has no passwords: use socks5h:// in the client")
            async with asyncio.timeout_at(deadline):
                request = await read_socks4(client, first)
            self._prove(client)
            upstream = await self._connect(request.host, request.port)
        except (socks5.SocksError, OSError) as error:
            log.info("refused a SOCKS4 client: %s", reason_of(error) if isinstance(error, OSError) else error)
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
        """Relay UDP until the client closes its TCP connection (RFC 1928, 6)."""
        loop = asyncio.get_running_loop()
        family, address = client.family, client.getsockname()
        with socket.socket(family, DATAGRAM) as listener:
            listener.bind((address[0], 0, *address[2:]))
            # RFC 1928, 4: the client states the address that it will send from, or zeros if it does not know it.
            relay = UdpAssociation(self._side, listener, (client.getpeername()[0], request.port))
            try:
                host, port = listener.getsockname()[:2]
                await loop.sock_sendall(client, socks5.reply(socks5.SocksReply.SUCCEEDED, host, port))
                while await loop.sock_recv(client, CHUNK):
                    pass
            finally:
                relay.close()


async def read_socks4(client: socket.socket, data: bytes) -> socks4.Socks4Request:
    """Receive a SOCKS4 request. Raises SocksError, or EOFError if the client disconnects."""
    while (request := socks4.parse(data)) is None:
        more = await asyncio.get_running_loop().sock_recv(client, CHUNK)
        if not more:
            raise EOFError("the client disconnected before its request was complete")
        data += more
    return request


async def negotiate(client: socket.socket, negotiation: socks5.Negotiation, first: bytes) -> None:
    """Negotiate until there is a request or a failure. Raises EOFError if the client disconnects."""
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
            raise EOFError("the client disconnected before its request was complete")
