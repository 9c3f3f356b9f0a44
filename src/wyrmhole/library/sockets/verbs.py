"""The methods of a tunnel that make sockets, streams and servers, named like those of asyncio.

A `Stack` makes the sockets, `TunnelNames` resolves names, and `Reachability` explains why an address does not answer.
Failures raise the exceptions of the standard library: ConnectionRefusedError, TimeoutError, socket.gaierror. No packet
bypasses the tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, TypeVar

from wyrmhole.control.config.file import Config
from wyrmhole.errors import TunnelError
from wyrmhole.library.common import arguments, explain
from wyrmhole.library.common.explain import explained, host_port, named
from wyrmhole.library.common.own_threads import HELPERS
from wyrmhole.library.common.reachability import Reachability
from wyrmhole.library.common.socket_address import AddressInfo, SocketAddress
from wyrmhole.library.common.time_limit import Attempt, addresses_of, limited
from wyrmhole.library.names import address_info
from wyrmhole.library.names.tunnel_names import TunnelNames
from wyrmhole.library.sockets import icmp_echo
from wyrmhole.library.sockets.connecting import complete, first_connected
from wyrmhole.library.sockets.servers import TunnelServer
from wyrmhole.library.stacks.stack import HelperGone, HelperSlow, Pending, Socket, Stack
from wyrmhole.net.link_setup import Interface

FAST = 0.02
"""Seconds that an event loop may wait for a helper process. If that is not enough, a thread waits instead."""
STREAM_LIMIT = 1 << 16
"""Bytes that a StreamReader buffers, the default of asyncio."""
LATE_PATIENCE = 1.0
"""Seconds to wait for addresses of the second family if those of the first do not answer."""
STREAM, IPV4 = socket.SOCK_STREAM, socket.AF_INET
"""Aliases, because the class below has a method `socket`."""

HostAndPort = tuple[str, int]
SslOption = ssl_module.SSLContext | Literal[True] | None
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.BaseProtocol)
_Made = TypeVar("_Made", bound="Socket | Pending")


class TunnelVerbs:
    """The base class of `Tunnel`.

    `timeout` limits a whole call, name resolution and TLS included, in seconds. None leaves the limit to the kernel.
    """

    stack: Stack
    config: Config
    _names: TunnelNames
    _reachability: Reachability

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    def _check(self) -> None:
        """Raises TunnelError if the tunnel is closed or is a copy in a fork."""
        raise NotImplementedError

    def _keep_server(self, server: TunnelServer) -> None:
        """Remember a server, which ends with the tunnel."""
        raise NotImplementedError

    @property
    def addresses(self) -> list[Interface]:
        """The tunnel's own addresses, with their prefix lengths."""
        return list(self.config.interface.addresses)

    @property
    def families(self) -> tuple[int, ...]:
        """The address families of the tunnel's addresses, AF_INET6 before AF_INET."""
        versions = {address.version for address in self.config.interface.addresses}
        return tuple(family for family, version in ((socket.AF_INET6, 6), (socket.AF_INET, 4)) if version in versions)

    # Names

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: int | str | bytes | None,
        family: int = 0,
        type: int = STREAM,
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """Resolve a name like `socket.getaddrinfo`, by the tunnel's name servers and never by the host's.

        Addresses are returned in the order to try. A literal address is returned unchanged. An empty host means any
        address of the tunnel. Type 0 lists each address for all types. Raises socket.gaierror.
        """
        self._check()
        return await self._names.getaddrinfo(host, port, family, type, proto, flags)

    async def _local(self, local_addr: HostAndPort | None, family: int, type: int) -> SocketAddress | None:
        if local_addr is None:
            return None
        infos = await self.getaddrinfo(*local_addr, family=family, type=type)
        return infos[0][4]

    # Sockets

    def socket(self, family: int = IPV4, type: int = STREAM, proto: int = 0) -> Socket:
        """Return a non-blocking socket inside the tunnel, neither bound nor connected, in about 15 us. Raises OSError.

        Thread-safe.
        """
        self._check()
        return self.stack.socket(family, type, proto)

    async def open_socket(self, family: int, type: int = STREAM, proto: int = 0) -> Socket:
        """Return a socket like `socket` does, without blocking the loop if the helper process is slow."""
        return await self._soon(self.stack.socket, family, type, proto)

    async def connect_socket(
        self,
        host: str,
        port: int,
        *,
        family: int = 0,
        type: int = STREAM,
        local_addr: HostAndPort | None = None,
        timeout: float | None = None,
    ) -> Socket:
        """Return a connected, non-blocking socket. A name's addresses are tried in turn, 250 ms apart (RFC 8305).

        Raises the same exceptions as `socket.create_connection`: ConnectionRefusedError, TimeoutError,
        socket.gaierror, OSError.
        """
        async with self._limit(host, port, timeout) as attempt:
            return await self._connect_one(attempt, host, port, family, type, local_addr)

    async def _connect_one(
        self, attempt: Attempt, host: str, port: int, family: int, kind: int, local_addr: HostAndPort | None
    ) -> Socket:
        if local_addr is not None:
            arguments.check_address("local_addr", local_addr)
        infos = await self.getaddrinfo(host, port, family=family, type=kind)
        attempt.tried += addresses_of(infos)
        attempts = [functools.partial(self._connect, info[0], kind, info[4], local_addr) for info in infos]
        if not family and self._names.is_incomplete(host):
            attempts.append(functools.partial(self._connect_late, host, infos, kind, local_addr))
        sock = await first_connected(attempts)
        attempt.is_connected = True
        return sock

    async def _connect_late(
        self, host: str, known: Sequence[AddressInfo], kind: int, local_addr: HostAndPort | None
    ) -> Socket:
        """Connect to addresses that arrived after the others were tried (RFC 8305, 3)."""
        late = await self._names.late_addresses(host, LATE_PATIENCE)
        old = {each[4][0] for each in known}
        remotes = [address_info.info(address, known[0][4][1], kind) for address in late if str(address) not in old]
        if not remotes:
            raise socket.gaierror(socket.EAI_AGAIN, f"{host} has no other address")
        return await first_connected(
            [functools.partial(self._connect, each[0], kind, each[4], local_addr) for each in remotes]
        )

    async def _connect(self, family: int, kind: int, remote: SocketAddress, local_addr: HostAndPort | None) -> Socket:
        local = await self._local(local_addr, family, kind)
        if kind == socket.SOCK_DGRAM:
            self._check_route(remote)
        try:
            return await complete(await self._soon(self.stack.connect, family, kind, remote, local))
        except TunnelError:
            raise
        except OSError as error:
            raise self._refused(error, local, remote) from None

    def _check_route(self, remote: SocketAddress) -> None:
        """Refuse to connect a datagram socket to an address that no peer owns.

        The engine answers such a datagram with an ICMP error, but the kernel does not report it to the socket. Raises
        the same OSError as connecting to an address without a route.
        """
        address = ipaddress.ip_address(str(remote[0]).partition("%")[0])
        if address.version in {own.version for own in self.addresses} and not (
            address.is_unspecified or self._reachability.leads_to(address)
        ):
            error = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
            raise named(error, str(remote[0]), int(remote[1]), self._reachability.explain(str(remote[0])))

    def _refused(self, error: OSError, local: SocketAddress | None, remote: SocketAddress | None) -> OSError:
        """Return the error with the address that could not be bound or connected."""
        if local is not None and error.errno in explain.UNBOUND:
            return self._unbound(error, local)
        if remote is None:
            return error
        return named(error, str(remote[0]), int(remote[1]), self._reason(error, str(remote[0])))

    def _reason(self, error: OSError, host: str) -> str:
        """Explain an error; empty for an error that the remote host itself reports."""
        if self.closed:
            return "the tunnel was closed"
        return self._reachability.explain(host) if error.errno in explain.UNANSWERED else ""

    def _unbound(self, error: OSError, local: SocketAddress) -> OSError:
        own = ", ".join(map(str, self.addresses))
        reason = f"the tunnel's addresses are {own}" if error.errno == errno.EADDRNOTAVAIL else ""
        return explained(error, f"cannot bind to {host_port(str(local[0]), local[1])} inside the tunnel", reason)

    def _limit(self, host: str, port: int, timeout: float | None) -> AbstractAsyncContextManager[Attempt]:
        arguments.check_host(host)
        arguments.check_port(port)
        arguments.check_timeout(timeout)
        return limited(host_port(host, port), timeout, self._reachability.explain, self._names.explain)

    def explain(self, host: str) -> str:
        """Explain for a message why an address inside may not answer: the state of its peer. Empty for a name."""
        found = address_info.literal(host)
        return "" if found is None or self.closed else self._reachability.explain(str(found))

    async def create_connection(
        self,
        protocol_factory: Callable[[], AnyProtocol],
        host: str,
        port: int,
        *,
        ssl: SslOption = None,
        family: int = 0,
        local_addr: HostAndPort | None = None,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> tuple[asyncio.Transport, AnyProtocol]:
        """Connect like `loop.create_connection`. TLS checks the certificate against `server_hostname`, or `host`."""
        async with self._limit(host, port, timeout) as attempt:
            sock = await self._connect_one(attempt, host, port, family, STREAM, local_addr)
            with closing_on_failure(sock):
                return await asyncio.get_running_loop().create_connection(
                    protocol_factory, sock=sock, ssl=ssl, server_hostname=server_name(ssl, server_hostname, host)
                )

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        ssl: SslOption = None,
        family: int = 0,
        local_addr: HostAndPort | None = None,
        server_hostname: str | None = None,
        limit: int = STREAM_LIMIT,
        timeout: float | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect like `asyncio.open_connection`. Raises the exceptions of `connect_socket`, and ssl.SSLError."""
        async with self._limit(host, port, timeout) as attempt:
            sock = await self._connect_one(attempt, host, port, family, STREAM, local_addr)
            with closing_on_failure(sock):
                return await asyncio.open_connection(
                    sock=sock, ssl=ssl, server_hostname=server_name(ssl, server_hostname, host), limit=limit
                )

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int = 0,
        *,
        family: int = 0,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
        start_serving: bool = True,
    ) -> TunnelServer:
        """Start a server inside the tunnel like `loop.create_server`.

        Without a host it listens on every address of the tunnel. Port 0 means a free port, the same for all addresses.
        Ports below 1024 need no privileges. Raises OSError (EADDRINUSE, EADDRNOTAVAIL).
        """
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        try:
            for sock in await self.listen(host, port, family=family, backlog=backlog, reuse_port=reuse_port):
                with closing_on_failure(sock):
                    servers.append(
                        await loop.create_server(
                            protocol_factory, sock=sock, ssl=ssl, backlog=backlog, start_serving=start_serving
                        )
                    )
        except BaseException:
            for server in servers:
                server.close()
            raise
        made = TunnelServer(servers, loop)
        self._keep_server(made)
        return made

    async def start_server(
        self,
        client_connected_cb: ClientConnected,
        host: str | None = None,
        port: int = 0,
        *,
        limit: int = STREAM_LIMIT,
        family: int = 0,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
        start_serving: bool = True,
    ) -> TunnelServer:
        """Start a server inside the tunnel like `asyncio.start_server`. See `create_server`."""
        loop = asyncio.get_running_loop()

        def factory() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=limit, loop=loop)
            return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

        return await self.create_server(
            factory,
            host,
            port,
            family=family,
            backlog=backlog,
            ssl=ssl,
            reuse_port=reuse_port,
            start_serving=start_serving,
        )

    async def listen(
        self, host: str | None, port: int, *, family: int = 0, backlog: int = 100, reuse_port: bool = False
    ) -> list[Socket]:
        """Return listening sockets inside the tunnel, one for each address of `host`. See `create_server`."""
        arguments.check_port(port)
        arguments.check_number("backlog", backlog, 0, 2**31 - 1)
        made: list[Socket] = []
        try:
            for info in await self.getaddrinfo(host, port, family=family):
                address = (info[4][0], info[4][1] or (made[0].getsockname()[1] if made else 0), *info[4][2:])
                made.append(await self._listen_one(info[0], address, backlog, reuse_port))
        except BaseException:
            for sock in made:
                sock.close()
            raise
        return made

    async def _listen_one(self, family: int, address: SocketAddress, backlog: int, reuse_port: bool) -> Socket:
        try:
            return await self._soon(self.stack.listen, family, address, backlog, reuse_port=reuse_port)
        except TunnelError:
            raise
        except OSError as error:
            raise self._unbound(error, address) from None

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], AnyProtocol],
        local_addr: HostAndPort | None = None,
        remote_addr: HostAndPort | None = None,
        *,
        family: int = 0,
    ) -> tuple[asyncio.DatagramTransport, AnyProtocol]:
        """Make a datagram transport inside the tunnel like `loop.create_datagram_endpoint`."""
        for what, given in (("local_addr", local_addr), ("remote_addr", remote_addr)):
            if given is not None:
                arguments.check_address(what, given)
        kind = socket.SOCK_DGRAM
        remote: SocketAddress | None = None
        if remote_addr is not None:
            info = (await self.getaddrinfo(*remote_addr, family=family, type=kind))[0]
            family, remote = info[0], info[4]
        elif local_addr is not None:
            family = (await self.getaddrinfo(*local_addr, family=family, type=kind))[0][0]
        family = family or self.families[-1]
        local = await self._local(local_addr, family, kind)
        if remote is not None:
            self._check_route(remote)
        try:
            sock = await self._soon(self.stack.datagram, family, local, remote)
        except TunnelError:
            raise
        except OSError as error:
            raise self._refused(error, local, remote) from None
        with closing_on_failure(sock):
            return await asyncio.get_running_loop().create_datagram_endpoint(protocol_factory, sock=sock)

    async def ping(self, host: str, *, timeout: float | None = 5.0, size: int = 56, family: int = 0) -> float:
        """Send an ICMP echo of `size` bytes and return the seconds until the answer.

        Raises TimeoutError, socket.gaierror, OSError.
        """
        arguments.check_host(host)
        arguments.check_timeout(timeout)
        arguments.check_number("the size of a ping", size, 0, icmp_echo.MAX_SIZE)
        async with limited(host, timeout, self._reachability.explain, self._names.explain) as attempt:
            info = (await self.getaddrinfo(host, 0, family=family))[0]
            attempt.tried += addresses_of([info])
            sock = await self.open_socket(info[0], socket.SOCK_RAW, icmp_echo.protocol_of(info[0]))
            try:
                return await icmp_echo.echo(sock, info[4], id(sock) >> 4 & 0xFFFFFFFF, size)
            except OSError as error:
                address = str(info[4][0])
                where = host if host == address else f"{host} ({address})"
                raise explained(error, f"no answer to a ping of {where}", self._reason(error, address)) from None

    # Threads

    async def _soon(self, make: Callable[..., _Made], *arguments: object, **options: object) -> _Made:
        """Call a method of the stack, here if the helper process answers within `FAST`, otherwise in a thread."""
        self._check()
        try:
            return make(*arguments, **options, patience=FAST)
        except (HelperSlow, HelperGone):
            pass
        return await HELPERS.run(functools.partial(make, *arguments, **options), unwanted=_close_made)


def _close_made(made: Socket | Pending) -> None:
    (made.socket if isinstance(made, Pending) else made).close()


@contextlib.contextmanager
def closing_on_failure(sock: Socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def server_name(ssl: SslOption, given: str | None, host: str) -> str | None:
    """Return the name for TLS like asyncio: the given name, otherwise the host; None without TLS."""
    return given if given is not None or not ssl else host
