"""The seam between the library and a TCP/IP stack that has the tunnel's addresses.

A `Stack` gives out real sockets that live behind the tunnel, and owns the `PacketPort` by which its IP packets come and
go: a virtio-net header and one IP packet or TCP/UDP super-packet, both ways, which is what `net.tun.Tun` is. The engine
works on the port and the library on the stack, and neither knows the other.

The verbs that every stack has are `connect`, `listen` and `datagram`, with numeric addresses: names are resolved
before. `socket` is the extra of stacks whose sockets may be made first and connected later.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wyrmhole.library.common.socket_address import SocketAddress
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.net.tun import Tun

PacketPort: TypeAlias = Tun
Socket: TypeAlias = socket.socket
"""By another name, for classes that have a method of this one."""


@dataclass(frozen=True, slots=True)
class StackAbilities:
    """What a stack can do besides the portable verbs."""

    unconnected_sockets: bool
    backlog: bool
    """Whether a listener queues connections by itself."""
    raw: bool
    """Raw ICMP sockets, and with them `ping`."""
    congestion: str
    """The congestion control of its TCP; empty: the system's default."""


class Pending:
    """A connection on its way. Wait until `fileno` is writable, then `finish`; or `wait`, which does both."""

    def __init__(self, sock: Socket, done: bool) -> None:
        self.socket = sock
        self.done = done

    def fileno(self) -> int:
        return self.socket.fileno()

    def finish(self) -> Socket:
        """The connected socket. Raises what became of the attempt, as `socket.connect` does, and closes it then."""
        number = 0 if self.done else self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.socket.close()
            raise OSError(number, os.strerror(number))
        self.done = True
        return self.socket

    def wait(self, timeout: float | None) -> Socket:
        """Block for at most `timeout` seconds. Raises TimeoutError, OSError; closes the socket then."""
        if not self.done:
            poll = select.poll()
            poll.register(self.socket, select.POLLOUT)
            try:
                ready = poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
            except BaseException:
                self.socket.close()
                raise
            if not ready:
                self.socket.close()
                raise TimeoutError("timed out")
        return self.finish()


class Stack(Protocol):
    """All may be called from any thread. Sockets are non-blocking. Raises OSError, of which TunnelError is one.

    `patience`: raise HelperSlow or HelperGone where it would take longer than these seconds, instead of doing what is
    needed then; an event loop has none to lose.
    """

    name: str

    @property
    def port(self) -> PacketPort: ...

    @property
    def traits(self) -> StackAbilities: ...

    def configure(self, addresses: Sequence[Interface], routes: Sequence[Network], mtu: int) -> None:
        """Have exactly these; may be called again while sockets are in use."""

    def connect(
        self,
        family: int,
        kind: int,
        remote: SocketAddress,
        local: SocketAddress | None = None,
        *,
        patience: float | None = None,
    ) -> Pending: ...

    def listen(
        self,
        family: int,
        local: SocketAddress,
        backlog: int,
        *,
        reuse_port: bool = False,
        patience: float | None = None,
    ) -> Socket: ...

    def datagram(
        self,
        family: int,
        local: SocketAddress | None = None,
        remote: SocketAddress | None = None,
        *,
        patience: float | None = None,
    ) -> Socket: ...

    def socket(self, family: int, kind: int, protocol: int = 0, *, patience: float | None = None) -> Socket:
        """Neither bound nor connected. Only with `traits.unconnected_sockets`."""

    def abort_all(self) -> int:
        """End every socket, with ECONNABORTED; returns how many, or -1 when that cannot be told."""

    def close(self) -> None:
        """End every socket and release everything, the port last. Idempotent."""


class HelperGone(ConnectionError):
    """What a stack makes its sockets with has ended, and there was no time to replace it."""


class HelperSlow(TimeoutError):
    """What a stack makes its sockets with did not answer in time; what it answers later is thrown away."""


class SocketVerbs:
    """The portable verbs, for stacks whose sockets are the kernel's."""

    def socket(self, family: int, kind: int, protocol: int = 0, *, patience: float | None = None) -> Socket:
        raise NotImplementedError

    def connect(
        self,
        family: int,
        kind: int,
        remote: SocketAddress,
        local: SocketAddress | None = None,
        *,
        patience: float | None = None,
    ) -> Pending:
        """See `Stack.connect`."""
        return start_connect(self.socket(family, kind, patience=patience), remote, local)

    def listen(
        self,
        family: int,
        local: SocketAddress,
        backlog: int,
        *,
        reuse_port: bool = False,
        patience: float | None = None,
    ) -> Socket:
        """See `Stack.listen`."""
        return start_listen(self.socket(family, socket.SOCK_STREAM, patience=patience), local, backlog, reuse_port)

    def datagram(
        self,
        family: int,
        local: SocketAddress | None = None,
        remote: SocketAddress | None = None,
        *,
        patience: float | None = None,
    ) -> Socket:
        """See `Stack.datagram`."""
        return start_datagram(self.socket(family, socket.SOCK_DGRAM, patience=patience), local, remote)


def start_connect(sock: Socket, remote: SocketAddress, local: SocketAddress | None) -> Pending:
    """Begin; the socket is closed when that fails."""
    try:
        if local is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(local)
        number = sock.connect_ex(remote)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return Pending(sock, number == 0)


def start_listen(sock: Socket, local: SocketAddress, backlog: int, reuse_port: bool) -> Socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(local)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def start_datagram(sock: Socket, local: SocketAddress | None, remote: SocketAddress | None) -> Socket:
    try:
        if local is not None:
            sock.bind(local)
        if remote is not None:
            sock.connect(remote)
    except BaseException:
        sock.close()
        raise
    return sock
