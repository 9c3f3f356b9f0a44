"""Tunnel: ordinary sockets, streams and servers behind a tunnel, in the verbs of asyncio.

    async with wyrmhole.open("wg0.conf") as tunnel:
        reader, writer = await tunnel.open_connection("db.internal", 5432)

A `Stack` gives the sockets and a `Carrier` moves their packets; this joins the two and adds names. What it gives out is
the standard library's own: `socket.socket`, asyncio transports, streams. What goes wrong is raised as the standard
library raises it: ConnectionRefusedError, TimeoutError, socket.gaierror. Nothing ever goes around the tunnel: where one
cannot be had, `open` raises.

A tunnel belongs to the loop that opened it. Other threads take `wyrmhole.sync`.

Longer than 500 lines because it is the public interface: one class, whose verbs are read in one place. What they do is
elsewhere.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from wyrmhole.control.config.file import Config
from wyrmhole.errors import TunnelError
from wyrmhole.library.carrier import Carrier
from wyrmhole.library.common import arguments, explain
from wyrmhole.library.common.explain import explained, named, spot
from wyrmhole.library.common.own_threads import HELPERS
from wyrmhole.library.common.time_limit import Attempt, addresses_of, limited
from wyrmhole.library.configuring import check_config, is_own, load_config, reconfigure_stack, warn_of_servers
from wyrmhole.library.events import Events
from wyrmhole.library.life import Life
from wyrmhole.library.names import address_info
from wyrmhole.library.peers import Peer, Peers, Stats
from wyrmhole.library.sockets import icmp_echo
from wyrmhole.library.sockets.connecting import complete, first_connected
from wyrmhole.library.sockets.servers import TunnelServer
from wyrmhole.library.stacks.stack import HelperGone, HelperSlow, Pending, Socket, SocketAddress, Stack
from wyrmhole.net.link_setup import Interface
from wyrmhole.protocol.drops import by_name

if TYPE_CHECKING:
    from wyrmhole.library.diagnosis.steps import Finding
    from wyrmhole.library.names.resolver import Resolver
    from wyrmhole.library.services.service import Limits, Service

FAST = 0.02
"""Seconds that an event loop may lose to a helper that does not run; then a thread does the waiting."""
STREAM_LIMIT = 1 << 16
"""Bytes that a StreamReader buffers, as in asyncio."""
LATE_PATIENCE = 1.0
"""Seconds that addresses of the second family are waited for when those of the first do not answer."""
STREAM, IPV4 = socket.SOCK_STREAM, socket.AF_INET
"""By names of their own: the class below has a method `socket`."""

Address = tuple[str, int]
SslOption = ssl_module.SSLContext | Literal[True] | None
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.BaseProtocol)
T = TypeVar("T")


class Tunnel:
    """Made by `wyrmhole.open`. Closing it ends every socket made with it, wherever it is, with ConnectionAbortedError.

    Dropping it unclosed closes it too, with a ResourceWarning: what it made does not keep it open.

    `timeout` is seconds for all that a verb does, names and TLS included; None: as long as the kernel tries.
    """

    def __init__(self, stack: Stack, carrier: Carrier, config: Config, source: str | os.PathLike[str] | None) -> None:
        """Use `wyrmhole.open`."""
        self.stack = stack
        self.config = config
        self._carrier = carrier
        self._life = Life(stack, carrier)
        self.peers = Peers(carrier, self._life.check)
        self._source = source
        self._resolver: Resolver | None = None
        self._life.follow(self, self._inside().__repr__)

    def __repr__(self) -> str:
        state = "closed" if self.closed else ", ".join(map(str, self.addresses))
        return f"<Tunnel {state}, {self.stack.name} stack, {self._carrier.device.engine_name} engine>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(arguments.NOT_PICKLED)

    # Life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything: servers, services, every socket, the sessions. Idempotent, and finished even if cancelled."""
        await self._life.close()

    @property
    def closed(self) -> bool:
        return self._life.closed

    def _check(self) -> None:
        """Raises TunnelError."""
        self._life.check()

    def _inside(self) -> Tunnel:
        """The same tunnel for what lives in it: to hold this one does not keep the program's own from being dropped."""
        inside = object.__new__(Tunnel)
        inside.__dict__ = self.__dict__
        return inside

    # What it is

    @property
    def addresses(self) -> list[Interface]:
        """The tunnel's own, with their prefix lengths."""
        return list(self.config.interface.addresses)

    @property
    def families(self) -> tuple[int, ...]:
        """AF_INET6, AF_INET: those it has addresses of, in the order of preference."""
        versions = {address.version for address in self.config.interface.addresses}
        return tuple(family for family, version in ((socket.AF_INET6, 6), (socket.AF_INET, 4)) if version in versions)

    def stats(self) -> Stats:
        """Counters of now. Raises TunnelError."""
        self._check()
        device = self._carrier.device
        status = device.status()
        peers = {each.public_key.base64(): self._carrier.peer_stats(each) for each in status.peers}
        return Stats(
            listen_port=status.listen_port,
            mtu=status.mtu,
            rx_bytes=sum(peer.rx_bytes for peer in peers.values()),
            tx_bytes=sum(peer.tx_bytes for peer in peers.values()),
            peers=peers,
            drops=by_name(device.drops()),
            oddities={oddity.value: count for oddity, count in device.oddities().items()},
            engine=self._carrier.device.engine_name,
            stack=self.stack.name,
        )

    async def diagnose(self, *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
        """Why does it not work? One Finding after the other: configuration, clock, endpoints, sessions, ping and path
        MTU inside, name servers. `names` are looked up too. Like `wyrmhole doctor CONFIG`. Raises TunnelError."""
        from wyrmhole.library.diagnosis.steps import diagnose_running
        from wyrmhole.library.diagnosis.tunnel_contact import TunnelContact

        self._check()
        contact = TunnelContact(self, self.stats().mtu)
        async for finding in diagnose_running(self.config, contact, names=names):
            yield finding

    def events(self) -> Events:
        """What happens from now on, to iterate over; ends with the tunnel. Raises TunnelError."""
        self._check()
        return self._carrier.follow()

    async def wait_handshake(self, timeout: float | None = None) -> Peer:
        """The first peer that has a session; handshakes are begun with all that have none. Raises TimeoutError."""
        self._check()
        arguments.check_timeout(timeout)
        return await self._carrier.wait_handshake(None, timeout)

    async def reload(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        """Be what the configuration says now; sessions and sockets of what stays are kept. None: read the same file
        again. Raises OSError, ConfigFileError, ConfigError, socket.gaierror; the tunnel is as it was then."""
        self._check()
        source = self._source if config is None else config
        new = self.config if source is None else load_config(source)
        check_config(new)
        answers = await self._carrier.resolve(new)
        self._check()
        undo = reconfigure_stack(self.stack, self.config, new)
        try:
            self._carrier.sync(new, answers)
        except BaseException:
            undo()
            raise
        warn_of_servers(new)
        if config is not None and not isinstance(config, Config):
            self._source = config
        self.config, self._resolver = new, None

    # Names

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: int | str | bytes | None,
        family: int = 0,
        type: int = STREAM,
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, ...]]:
        """As socket.getaddrinfo, by the tunnel's name servers, in the order to try. An address is taken as it is; an
        empty host is any address of the tunnel. Type 0 lists each address for all types. Raises socket.gaierror; the
        host's own names are never asked."""
        self._check()
        arguments.check_lookup(host, port)
        address_info.check(family, type, flags)
        name, number = address_info.as_host(host), address_info.as_port(port, type, flags)
        if not name:
            wanted = [address_info.ANY[each] for each in self.families if family in (0, each)]
            found = address_info.infos(wanted, number, address_info.kinds_of(type, proto))
        else:
            asked = self._resolve().getaddrinfo(name, number, family=family, type=type, proto=proto, flags=flags)
            try:
                found = await asked
            except socket.gaierror as error:
                raise self._unresolved(error) from None
        return list(address_info.of_service(found, port, flags))

    def _unresolved(self, error: socket.gaierror) -> socket.gaierror:
        """Add that no server could be reached, if that is so."""
        servers = self.config.interface.dns_servers if error.errno == socket.EAI_AGAIN else []
        found = dict.fromkeys(reason for server in servers if (reason := self._carrier.no_session(server)))
        if not found:
            return error
        return socket.gaierror(error.errno, "; ".join([error.strerror or str(error), *found])).with_traceback(
            error.__traceback__
        )

    def _resolve(self) -> Resolver:
        if self._resolver is None:
            from wyrmhole.library.names.resolver import Resolver

            # What the resolver holds must not keep the program's own tunnel from being dropped.
            self = self._inside()
            interface = self.config.interface
            self._resolver = Resolver(
                interface.dns_servers,
                self.open_socket,
                search=interface.dns_search,
                families=self.families,
                leads_to=self._leads_to,
            )
        return self._resolver

    def _leads_to(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return is_own(self.addresses, address) or self._carrier.leads_to(address)

    async def _local(self, local_addr: Address | None, family: int, type: int) -> SocketAddress | None:
        if local_addr is None:
            return None
        infos = await self.getaddrinfo(*local_addr, family=family, type=type)
        return tuple(infos[0][4])

    # Sockets

    def socket(self, family: int = IPV4, type: int = STREAM, proto: int = 0) -> Socket:
        """A socket inside, neither bound nor connected, non-blocking. Takes some 15 us. Raises OSError.

        May be called from any thread.
        """
        self._check()
        return self.stack.socket(family, type, proto)

    async def open_socket(self, family: int, type: int = STREAM, proto: int = 0) -> Socket:
        """The same, never holding the loop up."""
        return await self._soon(self.stack.socket, family, type, proto)

    async def connect_socket(
        self,
        host: str,
        port: int,
        *,
        family: int = 0,
        type: int = STREAM,
        local_addr: Address | None = None,
        timeout: float | None = None,
    ) -> Socket:
        """A connected, non-blocking socket. A name's addresses are tried in turn, 250 ms apart (RFC 8305).

        Raises what `socket.create_connection` raises: ConnectionRefusedError, TimeoutError, socket.gaierror, OSError.
        """
        async with self._limit(host, port, timeout) as attempt:
            return await self._connect_one(attempt, host, port, family, type, local_addr)

    async def _connect_one(
        self, attempt: Attempt, host: str, port: int, family: int, kind: int, local_addr: Address | None
    ) -> Socket:
        if local_addr is not None:
            arguments.check_address("local_addr", local_addr)
        infos = await self.getaddrinfo(host, port, family=family, type=kind)
        attempt.tried += addresses_of(infos)
        attempts = [functools.partial(self._connect, info[0], kind, tuple(info[4]), local_addr) for info in infos]
        if not family and self._resolver is not None and self._resolver.is_incomplete(host):
            attempts.append(functools.partial(self._connect_late, host, infos, kind, local_addr))
        sock = await first_connected(attempts)
        attempt.is_connected = True
        return sock

    async def _connect_late(
        self, host: str, known: Sequence[tuple[Any, ...]], kind: int, local_addr: Address | None
    ) -> Socket:
        """By addresses that arrive after the others were tried (RFC 8305, 3)."""
        late = await self._resolve().addresses(host, complete=True, patience=LATE_PATIENCE)
        old = {each[4][0] for each in known}
        remotes = [address_info.info(address, known[0][4][1], kind) for address in late if str(address) not in old]
        if not remotes:
            raise socket.gaierror(socket.EAI_AGAIN, f"{host} has no other address")
        return await first_connected(
            [functools.partial(self._connect, each[0], kind, each[4], local_addr) for each in remotes]
        )

    async def _connect(self, family: int, kind: int, remote: SocketAddress, local_addr: Address | None) -> Socket:
        local = await self._local(local_addr, family, kind)
        if kind == socket.SOCK_DGRAM:
            self._check_way(remote)
        try:
            return await complete(await self._soon(self.stack.connect, family, kind, remote, local))
        except TunnelError:
            raise
        except OSError as error:
            if local is not None and error.errno in explain.UNBOUND:
                raise self._unbound(error, local) from None
            raise named(error, str(remote[0]), int(remote[1]), self._reason(error, str(remote[0]))) from None

    def _check_way(self, remote: SocketAddress) -> None:
        """Datagrams without a way get an answer that the kernel keeps to itself, so they are refused before. Raises
        OSError, as connecting to an address without a route does."""
        address = ipaddress.ip_address(str(remote[0]).partition("%")[0])
        if address.version in {own.version for own in self.addresses} and not (
            address.is_unspecified or self._leads_to(address)
        ):
            error = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
            raise named(error, str(remote[0]), int(remote[1]), self._explain(str(remote[0])))

    def _reason(self, error: OSError, host: str) -> str:
        """Nothing for what the host inside says itself."""
        if self.closed:
            return "the tunnel was closed"
        return self._explain(host) if error.errno in explain.UNANSWERED else ""

    def _unbound(self, error: OSError, local: SocketAddress) -> OSError:
        own = ", ".join(map(str, self.addresses))
        reason = f"the tunnel's addresses are {own}" if error.errno == errno.EADDRNOTAVAIL else ""
        return explained(error, f"cannot bind to {spot(str(local[0]), local[1])} inside the tunnel", reason)

    def _limit(self, host: str, port: int, timeout: float | None) -> AbstractAsyncContextManager[Attempt]:
        arguments.check_host(host)
        arguments.check_port(port)
        arguments.check_timeout(timeout)
        return limited(spot(host, port), timeout, self._explain, self._explain_names)

    def explain(self, host: str) -> str:
        """What the tunnel knows about the way to an address inside, for a message: whether the peer in charge has a
        session, and if not, why. Empty for a name."""
        found = address_info.literal(host)
        return "" if found is None or self.closed else self._explain(str(found))

    def _explain(self, host: str) -> str:
        address = ipaddress.ip_address(host.partition("%")[0])
        if is_own(self.addresses, address):
            return ""
        if address.version not in {own.version for own in self.addresses}:
            own = ", ".join(map(str, self.addresses))
            return f"the tunnel has no IPv{address.version} address (Address = {own})"
        return self._carrier.explain(address)

    def _explain_names(self) -> str:
        servers = self.config.interface.dns_servers
        where = f": {self._carrier.explain(servers[0])}" if servers else ""
        return f"its name was not resolved{where}"

    async def create_connection(
        self,
        protocol_factory: Callable[[], AnyProtocol],
        host: str,
        port: int,
        *,
        ssl: SslOption = None,
        family: int = 0,
        local_addr: Address | None = None,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> tuple[asyncio.Transport, AnyProtocol]:
        """As loop.create_connection. TLS checks the certificate against `host`, unless told another name."""
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
        local_addr: Address | None = None,
        server_hostname: str | None = None,
        limit: int = STREAM_LIMIT,
        timeout: float | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As asyncio.open_connection. Raises as `connect_socket`, and ssl.SSLError."""
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
        """As loop.create_server, for peers to connect to. No host: every address of the tunnel; port 0: a free one, the
        same for all. Any port may be had, also those below 1024. Raises OSError (EADDRINUSE, EADDRNOTAVAIL)."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        try:
            for sock in await self._listen(host, port, family, backlog, reuse_port):
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
        self._life.servers = [server for server in self._life.servers if server.sockets]
        self._life.servers.append(made)
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
        """As asyncio.start_server; see `create_server`."""
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

    async def _listen(self, host: str | None, port: int, family: int, backlog: int, reuse_port: bool) -> list[Socket]:
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
        local_addr: Address | None = None,
        remote_addr: Address | None = None,
        *,
        family: int = 0,
    ) -> tuple[asyncio.DatagramTransport, AnyProtocol]:
        """As loop.create_datagram_endpoint."""
        for what, given in (("local_addr", local_addr), ("remote_addr", remote_addr)):
            if given is not None:
                arguments.check_address(what, given)
        kind = socket.SOCK_DGRAM
        remote: SocketAddress | None = None
        if remote_addr is not None:
            info = (await self.getaddrinfo(*remote_addr, family=family, type=kind))[0]
            family, remote = info[0], tuple(info[4])
        elif local_addr is not None:
            family = (await self.getaddrinfo(*local_addr, family=family, type=kind))[0][0]
        family = family or self.families[-1]
        local = await self._local(local_addr, family, kind)
        if remote is not None:
            self._check_way(remote)
        try:
            sock = await self._soon(self.stack.datagram, family, local, remote)
        except TunnelError:
            raise
        except OSError as error:
            if local is not None and error.errno in explain.UNBOUND:
                raise self._unbound(error, local) from None
            if remote is None:
                raise
            raise named(error, str(remote[0]), int(remote[1]), self._reason(error, str(remote[0]))) from None
        with closing_on_failure(sock):
            return await asyncio.get_running_loop().create_datagram_endpoint(protocol_factory, sock=sock)

    async def ping(self, host: str, *, timeout: float | None = 5.0, size: int = 56, family: int = 0) -> float:
        """Seconds until `host` answered an ICMP echo of `size` bytes. Raises TimeoutError, socket.gaierror, OSError."""
        arguments.check_host(host)
        arguments.check_timeout(timeout)
        arguments.check_number("the size of a ping", size, 0, icmp_echo.MAX_SIZE)
        async with limited(host, timeout, self._explain, self._explain_names) as attempt:
            info = (await self.getaddrinfo(host, 0, family=family))[0]
            attempt.tried += addresses_of([info])
            sock = await self.open_socket(info[0], socket.SOCK_RAW, icmp_echo.protocol_of(info[0]))
            try:
                return await icmp_echo.echo(sock, tuple(info[4]), id(sock) >> 4 & 0xFFFFFFFF, size)
            except OSError as error:
                address = str(info[4][0])
                where = host if host == address else f"{host} ({address})"
                raise explained(error, f"no answer to a ping of {where}", self._reason(error, address)) from None

    # Services

    async def forward(
        self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
    ) -> Service:
        """Listen on this host and connect inside: `forward("127.0.0.1:5432", "db.internal:5432")`. See
        `library.forward.forward`. Ends with the tunnel."""
        from wyrmhole.library.services.forward import forward

        return await self._serve(forward(self._inside(), listen, target, proto=proto, limits=limits))

    async def expose(
        self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
    ) -> Service:
        """Listen inside and connect on this host: `expose(":80", "127.0.0.1:8000")`. See `library.forward.expose`."""
        from wyrmhole.library.services.forward import expose

        return await self._serve(expose(self._inside(), listen, target, proto=proto, limits=limits))

    async def proxy(
        self,
        listen: str = "127.0.0.1:1080",
        *,
        users: Mapping[str, str] | None = None,
        allow_open: bool = False,
        limits: Limits | None = None,
    ) -> Service:
        """SOCKS5 and HTTP on one port of this host, into the tunnel. See `library.proxy.proxy`."""
        from wyrmhole.library.proxy.proxy import proxy

        return await self._serve(proxy(self._inside(), listen, users=users, allow_open=allow_open, limits=limits))

    async def _serve(self, starting: Coroutine[Any, Any, Service]) -> Service:
        try:
            self._check()
        except TunnelError:
            starting.close()
            raise
        service = await starting
        self._life.services.append(service)
        return service

    # Threads

    async def _soon(self, make: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What a stack's verb makes: at once as a rule, by a thread where the helper needs to be waited for."""
        self._check()
        try:
            return make(*arguments, **options, patience=FAST)
        except (HelperSlow, HelperGone):
            pass
        return await HELPERS.run(functools.partial(make, *arguments, **options), unwanted=_close_made)


def _close_made(made: Any) -> None:
    (made.socket if isinstance(made, Pending) else made).close()


@contextlib.contextmanager
def closing_on_failure(sock: Socket) -> Any:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def server_name(ssl: SslOption, given: str | None, host: str) -> str | None:
    """As asyncio has it: the host, unless another name was given; nothing without TLS."""
    return given if given is not None or not ssl else host
