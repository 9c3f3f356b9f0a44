"""The interface between the library and a TCP/IP stack that has the tunnel's addresses.

A `Stack` makes real sockets inside the tunnel, and owns the `PacketPort` through which its IP packets pass. The port
has the interface of `net.tun.Tun`. The engine uses the port and the library uses the stack; neither knows the other.

Every stack has the methods `connect`, `listen` and `datagram`, which take numeric addresses. Stacks whose sockets can
be made first and connected later also have `socket`.
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
"""An alias for classes that have a method `socket`."""


@dataclass(frozen=True, slots=True)
class StackAbilities:
    """The abilities of a stack besides the portable methods."""

    unconnected_sockets: bool
    backlog: bool
    """Whether a listener queues connections itself."""
    raw: bool
    """Whether there are raw ICMP sockets, which `ping` requires."""
    congestion: str
    """The congestion control of TCP; empty for the system's default."""


class Pending:
    """A connection attempt. Wait until `fileno` is writable, then call `finish`; or call `wait`, which does both."""

    def __init__(self, sock: Socket, done: bool) -> None:
        self.socket = sock
        self.done = done

    def fileno(self) -> int:
        return self.socket.fileno()

    def finish(self) -> Socket:
        """Return the connected socket. If the attempt failed, close it and raise the error of `socket.connect`."""
        number = 0 if self.done else self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.socket.close()
            raise OSError(number, os.strerror(number))
        self.done = True
        return self.socket

    def wait(self, timeout: float | None) -> Socket:
        """Block for at most `timeout` seconds. Raises TimeoutError, OSError, and closes the socket in this case."""
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
    """A TCP/IP stack. All methods are thread-safe. Sockets are non-blocking. Raises OSError, including TunnelError.

    With `patience`, a method raises HelperSlow or HelperGone if it would take longer than these seconds, instead of
    replacing the helper, so that it does not block an event loop.
    """

    name: str

    @property
    def port(self) -> PacketPort: ...

    @property
    def traits(self) -> StackAbilities: ...

    def configure(self, addresses: Sequence[Interface], routes: Sequence[Network], mtu: int) -> None:
        """Replace addresses, routes and MTU. May be called again while sockets are in use."""

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
        """Return a socket that is neither bound nor connected. Requires `traits.unconnected_sockets`."""

    def abort_all(self) -> int:
        """End every socket with ECONNABORTED, and return their number, or -1 if it is unknown."""

    def close(self) -> None:
        """End every socket and release all resources, the port last. Idempotent."""


class HelperGone(ConnectionError):
    """The helper that makes the stack's sockets has ended, and there was no time to replace it."""


class HelperSlow(TimeoutError):
    """The helper that makes the stack's sockets did not answer in time. A later answer is discarded."""


class SocketVerbs:
    """The portable methods, for stacks with kernel sockets."""

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
    """Start connecting. Close the socket if that fails."""
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
