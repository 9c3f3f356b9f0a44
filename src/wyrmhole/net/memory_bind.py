"""MemoryBind: the twin of UdpBind without an operating system's network, for tests and simulations in one process.

A `MemoryNetwork` delivers datagrams between its binds by address, immediately, in order and, by default, without loss.
A test that calls `send` and `receive` alternately is therefore deterministic. Each bind has an eventfd that is readable
while datagrams wait, so that an engine's thread can poll it like a socket. All methods are thread-safe.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wyrmhole.net import sticky
from wyrmhole.net.bind import Payload, SendOutcome, datagrams_of
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import Endpoint, SockAddr

_FIRST_FREE_PORT = 49_152
_INTERFACE = 1


@dataclass(frozen=True, slots=True)
class Datagram:
    """A message in transit: one datagram, or a train if `segment_size` is set."""

    data: bytes
    segment_size: int
    sender: Endpoint
    receiver: Endpoint
    tos: int


class MemoryNetwork:
    """The binds that can reach each other.

    `carries` decides whether a message arrives; tests replace it to lose messages. `queue_limit` is the number of
    messages that may wait at one bind. Further messages are lost and counted in `lost`.
    """

    def __init__(self, *, queue_limit: int = 1024) -> None:
        self.queue_limit = queue_limit
        self.carries: Callable[[Datagram], bool] = lambda datagram: True
        self.lost = 0
        self.lock = threading.RLock()
        self._owners: dict[tuple[str, int], MemoryBind] = {}
        self._next_port = _FIRST_FREE_PORT

    def bind(self, *hosts: str, gro: bool = True) -> MemoryBind:
        """Make a bind on a host with these addresses. Without `gro`, trains arrive as single datagrams."""
        return MemoryBind(self, hosts, gro=gro)

    def claim(self, bind: MemoryBind, hosts: Sequence[str], port: int) -> int:
        """Reserve a port on the bind's addresses, 0 for any, and return it. Raises OSError (EADDRINUSE)."""
        with self.lock:
            while not port:
                candidate, self._next_port = self._next_port, self._next_port + 1
                port = 0 if self._is_taken(hosts, candidate) else candidate
            if self._is_taken(hosts, port):
                raise OSError(errno.EADDRINUSE, f"port {port} is in use")
            self._owners.update({(host, port): bind for host in hosts})
            return port

    def release(self, bind: MemoryBind) -> None:
        with self.lock:
            self._owners = {address: owner for address, owner in self._owners.items() if owner is not bind}

    def deliver(self, datagram: Datagram) -> None:
        """Deliver a message to its receiver, or lose it without notifying the sender, like a real network."""
        with self.lock:
            bind = self._owners.get((datagram.receiver.host, datagram.receiver.port))
            if bind is None or not self.carries(datagram) or not bind.accept(datagram):
                self.lost += 1

    def _is_taken(self, hosts: Sequence[str], port: int) -> bool:
        return any((host, port) in self._owners for host in hosts)


class MemoryBind:
    """See `net.bind.Bind`. `mark` is the fwmark, `sent` counts messages."""

    def __init__(self, network: MemoryNetwork, hosts: Sequence[str], *, gro: bool = True) -> None:
        self.mark = 0
        self.sent = 0
        self._network = network
        self._hosts = tuple(hosts)
        self._gro = gro
        self._port = 0
        self._event = -1
        self._queue: deque[Datagram] = deque()
        self._stale = False

    def open(self, port: int) -> int:
        with self._network.lock:
            if self._event >= 0:
                raise OSError(errno.EISCONN, "the bind is already open")
            self._port = self._network.claim(self, self._hosts, port)
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._port

    def close(self) -> None:
        with self._network.lock:
            self._network.release(self)
            self._queue.clear()
            if self._event >= 0:
                os.close(self._event)
            self._event, self._port = -1, 0

    def move(self, *hosts: str) -> None:
        """Replace the host's addresses, as when it roams. Later messages are sent from the first one."""
        with self._network.lock:
            self._network.release(self)
            self._hosts = hosts
            self._stale = True
            if self._port:
                self._network.claim(self, hosts, self._port)

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def filenos(self) -> Sequence[int]:
        return () if self._event < 0 else (self._event,)

    def receive(self, fileno: int) -> Received | None:
        with self._network.lock:
            if fileno != self._event or fileno < 0:
                return None
            datagram = self._queue.popleft() if self._queue else None
            if not self._queue:
                self._clear_signal()
        if datagram is None:
            return None
        source = sticky.emit_source(datagram.receiver.host, _INTERFACE)
        view = memoryview(bytearray(datagram.data))
        return Received(view, datagram.segment_size, datagram.sender.sockaddr, source, datagram.tos)

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        message = b"".join(data) if isinstance(data, (list, tuple)) else bytes(data)  # type: ignore[arg-type]
        receiver = Endpoint.from_sockaddr(sockaddr)
        with self._network.lock:
            host, outcome = self._choose_host(receiver, source)
            if host is None or not self._port:
                return SendOutcome.DROPPED
            size = segment_size if 0 < segment_size < len(message) else 0
            sender = Endpoint(host, self._port)
            self.sent += 1
            self._network.deliver(Datagram(message, size, sender, receiver, tos))
        return outcome

    def _choose_host(self, receiver: Endpoint, source: bytes | None) -> tuple[str | None, SendOutcome]:
        """Return the address to send from: the pinned one if the host has it, otherwise the first of the family."""
        first = next((host for host in self._hosts if (":" in host) == receiver.is_v6), None)
        pinned = "" if source is None else sticky.parse_source(source)[0]
        if not pinned or (":" in pinned) != receiver.is_v6:
            return first, SendOutcome.SENT
        if pinned in self._hosts:
            return pinned, SendOutcome.SENT
        return first, SendOutcome.SOURCE_REJECTED

    def take_stale_sources(self) -> bool:
        stale, self._stale = self._stale, False
        return stale

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        return sticky.parse_source(source)[0] in self._hosts

    def accept(self, datagram: Datagram) -> bool:
        """Queue a message, called by the network under its lock. Return False if the queue is full."""
        pieces = [datagram] if self._gro else _split(datagram)
        if len(self._queue) + len(pieces) > self._network.queue_limit:
            return False
        self._queue.extend(pieces)
        self._signal()
        return True

    def _signal(self) -> None:
        os.eventfd_write(self._event, 1)

    def _clear_signal(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return


def _split(datagram: Datagram) -> list[Datagram]:
    pieces = datagrams_of(datagram.data, datagram.segment_size) or [b""]
    return [Datagram(piece, 0, datagram.sender, datagram.receiver, datagram.tos) for piece in pieces]
