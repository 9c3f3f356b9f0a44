"""Tunnel: ordinary sockets, streams and servers inside a tunnel, with the methods of asyncio.

    async with wyrmhole.open("wg0.conf") as tunnel:
        reader, writer = await tunnel.open_connection("db.internal", 5432)

A `Stack` makes the sockets and a `ConfiguredDevice` moves their packets; `Tunnel` joins the two and adds name
resolution. Its methods return objects of the standard library: `socket.socket`, asyncio transports, streams. No packet
ever bypasses the tunnel: if a tunnel cannot be made, `open` raises.

A tunnel belongs to the event loop that opened it. Other threads use `wyrmhole.sync`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from wyrmhole.control.config.file import Config
from wyrmhole.control.config.load import load_config
from wyrmhole.errors import TunnelError
from wyrmhole.library.common import arguments
from wyrmhole.library.configured_device import ConfiguredDevice
from wyrmhole.library.configuring import check_config, warn_of_servers
from wyrmhole.library.events import Events
from wyrmhole.library.life import Life
from wyrmhole.library.names.tunnel_names import TunnelNames
from wyrmhole.library.peers import Peer, Peers, Stats
from wyrmhole.library.services import forward as forwarding
from wyrmhole.library.sockets.servers import TunnelServer
from wyrmhole.library.sockets.verbs import TunnelVerbs
from wyrmhole.library.stacks.configure import reconfigure_stack
from wyrmhole.library.stacks.stack import Stack
from wyrmhole.protocol.drops import by_name

if TYPE_CHECKING:
    from wyrmhole.library.diagnosis.steps import Finding
    from wyrmhole.library.services.service import Limits, Service


class Tunnel(TunnelVerbs):
    """A running tunnel, made by `wyrmhole.open`.

    Closing it aborts every socket made with it, even one that was handed to another thread or library, with
    ConnectionAbortedError. Dropping the last reference to an open tunnel closes it too, with a ResourceWarning; the
    sockets, servers and services that it made do not keep it open.

    `TunnelVerbs` has the methods that make sockets.
    """

    def __init__(
        self, stack: Stack, outside: ConfiguredDevice, config: Config, source: str | os.PathLike[str] | None
    ) -> None:
        """Use `wyrmhole.open` instead."""
        self.stack = stack
        self.config = config
        self._outside = outside
        self._life = Life(stack, outside)
        self.peers = Peers(outside, self._life.check)
        self._source = source
        self._reachability = outside.reachability
        self._follow_config()
        self._life.follow(self, self._inside().__repr__)

    def __repr__(self) -> str:
        state = "closed" if self.closed else ", ".join(map(str, self.addresses))
        return f"<Tunnel {state}, {self.stack.name} stack, {self._outside.device.engine_name} engine>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(arguments.NOT_PICKLED)

    # Life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End servers, services, sockets and sessions. Idempotent. Cancelling `close` does not stop the closing."""
        await self._life.close()

    @property
    def closed(self) -> bool:
        return self._life.closed

    def _check(self) -> None:
        """Check that the tunnel is open. Raises TunnelError."""
        self._life.check()

    def _keep_server(self, server: TunnelServer) -> None:
        self._life.servers = [each for each in self._life.servers if each.sockets]
        self._life.servers.append(server)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call `call` once, in any thread, when the tunnel has ended completely."""
        self._life.when_ended(call)

    def _inside(self) -> Tunnel:
        """Return a second front of this tunnel, for servers and services.

        Holding it does not prevent the end of a tunnel whose program drops the first front.
        """
        inside = object.__new__(Tunnel)
        inside.__dict__ = self.__dict__
        return inside

    # State

    def stats(self) -> Stats:
        """Return the current state and counters. Raises TunnelError."""
        self._check()
        device = self._outside.device
        status = device.status()
        peers = {each.public_key.base64(): self._outside.peer_stats(each) for each in status.peers}
        return Stats(
            listen_port=status.listen_port,
            mtu=status.mtu,
            rx_bytes=sum(peer.rx_bytes for peer in peers.values()),
            tx_bytes=sum(peer.tx_bytes for peer in peers.values()),
            peers=peers,
            drops=by_name(device.drops()),
            oddities={oddity.value: count for oddity, count in device.oddities().items()},
            engine=self._outside.device.engine_name,
            stack=self.stack.name,
        )

    async def diagnose(self, *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
        """Diagnose the tunnel like `wyrmhole doctor CONFIG`, and yield one Finding after the other.

        The steps are: configuration, clock, endpoints, sessions, ping and path MTU inside, name servers, and a look-up
        of each of `names`. Raises TunnelError.
        """
        from wyrmhole.library.diagnosis.tunnel_contact import diagnose_tunnel

        self._check()
        async for finding in diagnose_tunnel(self, self.config, names):
            yield finding

    def events(self) -> Events:
        """Return an asynchronous iterator over future events. It ends with the tunnel. Raises TunnelError."""
        self._check()
        return self._outside.followers.follow()

    async def wait_handshake(self, timeout: float | None = None) -> Peer:
        """Start a handshake with every peer without a session, and return the first peer that has one.

        Raises TimeoutError.
        """
        self._check()
        arguments.check_timeout(timeout)
        return await self._outside.handshakes.wait_handshake(None, timeout)

    async def reload(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        """Apply a changed configuration. None means to read the same file again.

        Peers that stay keep their sessions, and addresses that stay keep their sockets. Raises OSError,
        ConfigFileError, ConfigError, socket.gaierror; the tunnel is unchanged in this case.
        """
        self._check()
        if config is not None:
            arguments.check_config(config)
        source = self._source if config is None else config
        new = self.config if source is None else load_config(source)
        check_config(new)
        answers = await self._outside.resolve(new)
        self._check()
        undo = reconfigure_stack(self.stack, self.config, new)
        try:
            self._outside.sync(new, answers)
        except BaseException:
            undo()
            raise
        warn_of_servers(new)
        if config is not None and not isinstance(config, Config):
            self._source = config
        self.config = new
        self._follow_config()

    def _follow_config(self) -> None:
        interface = self.config.interface
        self._outside.addresses = interface.addresses
        # TunnelNames must not hold the program's own front, which would then never be dropped.
        open_socket = self._inside().open_socket
        self._names = TunnelNames(
            interface.dns_servers, interface.dns_search, self.families, self._reachability, open_socket
        )

    # Services

    async def forward(
        self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
    ) -> Service:
        """Listen on this host and connect inside the tunnel: `forward("127.0.0.1:5432", "db.internal:5432")`.

        The service ends with the tunnel. See `library.services.forward.forward`.
        """
        return await self._serve(forwarding.forward(self._inside(), listen, target, proto=proto, limits=limits))

    async def expose(
        self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
    ) -> Service:
        """Listen inside the tunnel and connect on this host: `expose(":80", "127.0.0.1:8000")`.

        The service ends with the tunnel. See `library.services.forward.expose`.
        """
        return await self._serve(forwarding.expose(self._inside(), listen, target, proto=proto, limits=limits))

    async def proxy(
        self,
        listen: str = "127.0.0.1:1080",
        *,
        users: Mapping[str, str] | None = None,
        allow_open: bool = False,
        limits: Limits | None = None,
    ) -> Service:
        """Serve SOCKS and HTTP proxy clients on one port of this host, and connect inside the tunnel.

        The service ends with the tunnel. See `library.proxy.proxy`.
        """
        from wyrmhole.library.proxy.proxy import proxy

        return await self._serve(proxy(self._inside(), listen, users=users, allow_open=allow_open, limits=limits))

    async def _serve(self, starting: Coroutine[object, None, Service]) -> Service:
        try:
            self._check()
        except TunnelError:
            starting.close()
            raise
        service = await starting
        self._life.services.append(service)
        return service
