"""Tunnels for programs without asyncio: the same methods, blocking.

    with wyrmhole.sync.open("wg0.conf") as tunnel:
        sock = tunnel.create_connection(("db.internal", 5432), timeout=3)

An event loop in a separate thread runs the tunnel; each method submits a coroutine to it and waits for the result. The
data of sockets does not pass through the loop: they are blocking kernel sockets that belong to the caller. All methods
are thread-safe, and a call does not delay calls of other threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import TunnelError
from wyrmhole.library import tunnel as asynchronous
from wyrmhole.library.common import arguments
from wyrmhole.library.common.fork_guard import ForkGuard
from wyrmhole.library.common.socket_address import AddressInfo
from wyrmhole.library.events import Event, Events
from wyrmhole.library.opening import PendingTunnel
from wyrmhole.library.peers import Peer as AsyncPeer
from wyrmhole.library.peers import PeerStats, Stats
from wyrmhole.library.runtimes import check_runtime
from wyrmhole.library.sockets.verbs import HostAndPort
from wyrmhole.library.stacks.stack import Socket
from wyrmhole.net.link_setup import Interface
from wyrmhole.protocol.keys import PresharedKey, PublicKey
from wyrmhole.wire.prefix import Prefix

if TYPE_CHECKING:
    from wyrmhole.library.diagnosis.steps import Finding
    from wyrmhole.library.services.service import Limits
    from wyrmhole.library.services.service import Service as AsyncService

T = TypeVar("T")
STREAM, IPV4 = socket.SOCK_STREAM, socket.AF_INET
END_PATIENCE = 10.0
"""Limit of the wait for the loop's remaining tasks, and for its thread, in seconds."""


def open(
    config: Config | str | os.PathLike[str],
    *,
    stack: str = "auto",
    device: str | None = None,
    name: str | None = None,
    engine: str = "auto",
) -> Tunnel:
    """Open a tunnel like `wyrmhole.open`, with the same errors. Returns when it is ready. Close it, or use `with`."""
    check_runtime()
    opening = PendingTunnel(config, stack=stack, device=device, name=name, engine=engine)
    loop = LoopThread()
    try:
        return Tunnel(loop, loop.call(opening.open()))
    except BaseException:
        loop.stop()
        raise


class LoopThread:
    """An event loop that runs in a separate thread until `stop`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._forks = ForkGuard()
        self._thread = threading.Thread(target=self._run, name="wyrmhole-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self._end_tasks()
            self.loop.close()

    def _end_tasks(self) -> None:
        """Cancel the calls that other threads still wait for."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(RuntimeError):
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=END_PATIENCE))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    def call(self, work: Coroutine[object, None, T]) -> T:
        """Run `work` on the loop and return its result. An interrupt of the calling thread cancels it.

        Raises TunnelError after `stop` and in a fork.
        """
        try:
            self._check()
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise TunnelError(errno.EBADF, "the tunnel was closed during the call") from None
        except BaseException:
            future.cancel()
            raise
        finally:
            # Break a cycle: the future holds the exception, whose traceback holds this frame, which holds the tunnel.
            del future

    def stop_soon(self) -> None:
        """Stop the loop without waiting for it. Thread-safe."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)

    def stop(self) -> None:
        """Stop the loop and wait for its thread. Idempotent."""
        if not self._forks.is_forked and self._thread.is_alive():
            self.stop_soon()
            self._thread.join(END_PATIENCE)

    def _check(self) -> None:
        self._forks.check()
        if self.loop.is_closed() or not self._thread.is_alive():
            raise TunnelError(errno.EBADF, "the tunnel is closed")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a blocking call on the tunnel's own loop would wait for itself: use `tunnel.asynchronous`"
            )


class _Closable:
    """Closed by the end of a `with` statement."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Tunnel(_Closable):
    """A running tunnel, made by `wyrmhole.sync.open`. Its sockets are blocking, and end with it."""

    def __init__(self, loop: LoopThread, inner: asynchronous.Tunnel) -> None:
        """Use `wyrmhole.sync.open` instead."""
        self._loop = loop
        self.asynchronous = inner
        """The asyncio tunnel, which belongs to `loop`. Nothing else holds it, so it is dropped with this object."""
        inner.when_ended(loop.stop_soon)
        self.peers = Peers(loop, inner)

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    def __reduce__(self) -> NoReturn:
        raise TypeError(arguments.NOT_PICKLED)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop.loop

    @property
    def config(self) -> Config:
        return self.asynchronous.config

    @property
    def addresses(self) -> list[Interface]:
        return self.asynchronous.addresses

    @property
    def families(self) -> tuple[int, ...]:
        return self.asynchronous.families

    @property
    def closed(self) -> bool:
        return self.asynchronous.closed

    def close(self) -> None:
        """Close the tunnel like `Tunnel.close`, and stop its loop. Idempotent and thread-safe."""
        with contextlib.suppress(TunnelError):
            self._loop.call(self.asynchronous.close())
        self._loop.stop()

    # Sockets

    def socket(self, family: int = IPV4, type: int = STREAM, proto: int = 0) -> Socket:
        """Return a blocking socket inside the tunnel, neither bound nor connected. Raises OSError."""
        sock = self.asynchronous.socket(family, type, proto)
        sock.settimeout(socket.getdefaulttimeout())
        return sock

    def create_connection(
        self,
        address: HostAndPort,
        timeout: float | None = None,
        source_address: HostAndPort | None = None,
        *,
        family: int = 0,
        type: int = STREAM,
    ) -> Socket:
        """Connect like `socket.create_connection`. The name is resolved inside, and the socket keeps `timeout`.

        Raises ConnectionRefusedError, TimeoutError, socket.gaierror, OSError.
        """
        arguments.check_address("address", address)
        if source_address is not None:
            arguments.check_address("source_address", source_address)
        connecting = self.asynchronous.connect_socket(
            *address, family=family, type=type, local_addr=source_address, timeout=timeout
        )
        sock = self._loop.call(connecting)
        sock.settimeout(timeout)
        return sock

    connect_socket = create_connection

    def create_server(
        self, address: HostAndPort, *, family: int = 0, backlog: int = 100, reuse_port: bool = False
    ) -> Socket:
        """Return a blocking listener inside the tunnel, like `socket.create_server`.

        An empty host means any IPv4 address, or any IPv6 address if the tunnel has no IPv4 address.
        """
        arguments.check_address("address", address)
        host, port = address
        wanted = family or (0 if host else self.families[-1])
        listening = self.asynchronous.listen(host, port, family=wanted, backlog=backlog, reuse_port=reuse_port)
        first, *others = self._loop.call(listening)
        for other in others:
            other.close()
        first.setblocking(True)
        return first

    def getaddrinfo(
        self,
        host: str | bytes | None,
        port: int | str | bytes | None,
        family: int = 0,
        type: int = STREAM,
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """Resolve a name inside the tunnel, like `socket.getaddrinfo`. See `Tunnel.getaddrinfo`."""
        return self._loop.call(self.asynchronous.getaddrinfo(host, port, family, type, proto, flags))

    def ping(self, host: str, *, timeout: float | None = 5.0, size: int = 56, family: int = 0) -> float:
        """See `Tunnel.ping`."""
        return self._loop.call(self.asynchronous.ping(host, timeout=timeout, size=size, family=family))

    # The tunnel

    def stats(self) -> Stats:
        """See `Tunnel.stats`."""
        return self._loop.call(_later(self.asynchronous.stats))

    def events(self) -> Iterator[Event]:
        """Return a blocking iterator over future events. It ends with the tunnel."""
        return self._iterate(self._loop.call(_later(self.asynchronous.events)))

    def _iterate(self, events: Events) -> Iterator[Event]:
        while True:
            try:
                yield self._loop.call(events.__anext__())
            except (StopAsyncIteration, TunnelError):
                return

    def diagnose(self, *, names: Sequence[str] = ()) -> list[Finding]:
        """Return all findings of `Tunnel.diagnose` as a list."""

        async def findings() -> list[Finding]:
            return [finding async for finding in self.asynchronous.diagnose(names=names)]

        return self._loop.call(findings())

    def wait_handshake(self, timeout: float | None = None) -> Peer:
        """See `Tunnel.wait_handshake`."""
        return Peer(self._loop, self._loop.call(self.asynchronous.wait_handshake(timeout)))

    def reload(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        """See `Tunnel.reload`."""
        self._loop.call(self.asynchronous.reload(config))

    # Services

    def forward(self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None) -> Service:
        """See `Tunnel.forward`."""
        return Service(
            self._loop, self._loop.call(self.asynchronous.forward(listen, target, proto=proto, limits=limits))
        )

    def expose(self, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None) -> Service:
        """See `Tunnel.expose`."""
        return Service(
            self._loop, self._loop.call(self.asynchronous.expose(listen, target, proto=proto, limits=limits))
        )

    def proxy(
        self,
        listen: str = "127.0.0.1:1080",
        *,
        users: Mapping[str, str] | None = None,
        allow_open: bool = False,
        limits: Limits | None = None,
    ) -> Service:
        """See `Tunnel.proxy`."""
        starting = self.asynchronous.proxy(listen, users=users, allow_open=allow_open, limits=limits)
        return Service(self._loop, self._loop.call(starting))


class Peer:
    """See `wyrmhole.Peer`."""

    def __init__(self, loop: LoopThread, inner: AsyncPeer) -> None:
        self._loop = loop
        self._inner = inner
        self.name = inner.name
        self.public_key = inner.public_key

    def __repr__(self) -> str:
        return repr(self._inner)

    def stats(self) -> PeerStats:
        return self._loop.call(_later(self._inner.stats))

    def wait_handshake(self, timeout: float | None = None) -> None:
        self._loop.call(self._inner.wait_handshake(timeout))

    def handshake(self, timeout: float | None = None) -> None:
        """See `wyrmhole.Peer.handshake`."""
        self._loop.call(self._inner.handshake(timeout))


class Peers(Mapping[str, Peer]):
    """The peers by public key, in base64 or as a PublicKey."""

    def __init__(self, loop: LoopThread, inner: asynchronous.Tunnel) -> None:
        self._loop = loop
        self._inner = inner.peers

    def __getitem__(self, key: str | PublicKey) -> Peer:
        return Peer(self._loop, self._loop.call(_later(lambda: self._inner[key])))

    def __iter__(self) -> Iterator[str]:
        return iter(self._loop.call(_later(lambda: list(self._inner))))

    def __len__(self) -> int:
        return self._loop.call(_later(lambda: len(self._inner)))

    def add(
        self,
        public_key: str | PublicKey,
        *,
        allowed_ips: tuple[str | Prefix, ...] | list[str | Prefix] | list[str] = (),
        endpoint: str | ConfigEndpoint | None = None,
        preshared_key: str | PresharedKey | None = None,
        persistent_keepalive: int | None = None,
        name: str | None = None,
    ) -> Peer:
        """See `wyrmhole.library.peers.Peers.add`."""
        adding = self._inner.add(
            public_key,
            allowed_ips=allowed_ips,
            endpoint=endpoint,
            preshared_key=preshared_key,
            persistent_keepalive=persistent_keepalive,
            name=name,
        )
        return Peer(self._loop, self._loop.call(adding))

    def handshake(self, public_key: str | PublicKey, timeout: float | None = None) -> None:
        """See `wyrmhole.Peer.handshake`."""
        self._loop.call(self._inner.handshake(public_key, timeout))

    def remove(self, public_key: str | PublicKey) -> None:
        """See `wyrmhole.library.peers.Peers.remove`."""
        self._loop.call(self._inner.remove(public_key))


class Service(_Closable):
    """A running forward, exposure or proxy."""

    def __init__(self, loop: LoopThread, inner: AsyncService) -> None:
        self._loop = loop
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return self._inner.addresses

    def close(self) -> None:
        with contextlib.suppress(TunnelError):
            self._loop.call(_later(self._inner.close))


async def _later(call: Callable[[], T]) -> T:
    """Make a coroutine of a function that must be called on the loop."""
    return call()
