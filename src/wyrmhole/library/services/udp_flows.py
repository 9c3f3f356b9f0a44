"""UDP forwarding: each client of one listening socket gets a connected socket of its own on the other side.

How it works. A flow is a client's address, and on a listener of all addresses also the one that it wrote to, so that
answers leave from there. Flows lie in the order of their last packet: those idle for too long are at the front, and so
is the one that makes room when there are too many. While a flow's socket is being made its first few packets wait.
What a socket does not take at once is dropped, as routers do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from wyrmhole.library.common.descriptors import SERVICES, room
from wyrmhole.library.common.supervise import watched
from wyrmhole.library.services.dialer import is_loopback
from wyrmhole.library.services.service import Limits, reason_of
from wyrmhole.wire.ip import MAX_PACKET_SIZE

log = logging.getLogger(__name__)

BATCH = 64
"""Packets moved before others have their turn."""
WAITING = 16
"""Packets of a flow that wait for its socket: 16 x 64 KiB at the most."""
LARGEST = MAX_PACKET_SIZE
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
CONTROL = socket.CMSG_SPACE(20)

Control: TypeAlias = tuple[tuple[int, int, bytes], ...]
FlowClient: TypeAlias = tuple[Any, Control]
"""An address, and what makes answers leave from where it wrote to."""


class UdpFlows:
    """Owns the listener, which is bound and non-blocking. `connect` makes a flow's other socket, or raises OSError, in
    a time of its own."""

    def __init__(
        self, name: str, listener: socket.socket, connect: Callable[[], Awaitable[socket.socket]], limits: Limits
    ) -> None:
        self._name = name
        self._listener = listener
        self._connect = connect
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._flows: OrderedDict[FlowClient, Flow] = OrderedDict()
        self._sources: defaultdict[str, int] = defaultdict(int)
        self._wildcard = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_unspecified
        if self._wildcard:
            ask_destination(listener)
        self._timer = self._loop.call_later(limits.idle / 4, self._sweep)
        self._loop.add_reader(listener, self._readable)

    def __len__(self) -> int:
        return len(self._flows)

    def close(self) -> None:
        self._timer.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for client in list(self._flows):
            self.drop(client)

    def answer(self, client: FlowClient, data: bytes) -> None:
        """From the other side back to a client."""
        address, control = client
        try:
            if control:
                self._listener.sendmsg([data], control, 0, address)
            else:
                self._listener.sendto(data, address)
        except OSError as error:
            log.debug("%s: a packet to %s was dropped: %s", self._name, address, error)

    def touch(self, client: FlowClient) -> None:
        self._flows.move_to_end(client)
        self._flows[client].last = self._loop.time()

    def drop(self, client: FlowClient) -> None:
        flow = self._flows.pop(client, None)
        if flow is not None:
            self._sources[source_of(client)] -= 1
            SERVICES.give(1)
            flow.close()

    def _readable(self) -> None:
        for _ in range(BATCH):
            try:
                data, client = self._receive()
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("%s: %s", self._name, error)
                return
            if (flow := self._flow(client)) is not None:
                flow.send(data)

    def _receive(self) -> tuple[bytes, FlowClient]:
        if not self._wildcard:
            data, address = self._listener.recvfrom(LARGEST)
            return data, (address, ())
        data, control, _, address = self._listener.recvmsg(LARGEST, CONTROL)
        return data, (address, tuple(answer_from(*each) for each in control))

    def _flow(self, client: FlowClient) -> Flow | None:
        """The flow of a client; None where there is no room for another one."""
        flow = self._flows.get(client)
        if flow is None:
            self._make_room(source_of(client))
            if not SERVICES.take(1):
                log.debug("%s: a packet of %s was dropped: no descriptors left", self._name, client[0])
                return None
            flow = self._flows[client] = Flow(self, client)
            self._sources[source_of(client)] += 1
            flow.start(self._open(client))
        self.touch(client)
        return flow

    def _make_room(self, source: str) -> None:
        """For one more flow of a source: one of its own that has too many, else the one longest idle of all."""
        whole = self._limits.flows
        if not is_loopback(source) and self._sources[source] >= self._limits.share(whole):
            self.drop(next(client for client in self._flows if source_of(client) == source))
        elif len(self._flows) >= whole or (self._flows and SERVICES.taken >= room()):
            self.drop(next(iter(self._flows)))

    async def _open(self, client: FlowClient) -> socket.socket | None:
        try:
            return await self._connect()
        except OSError as error:
            log.info("%s: no flow for %s: %s", self._name, client[0], reason_of(error))
            return None

    def _sweep(self) -> None:
        """End what was idle for too long."""
        self._timer = self._loop.call_later(self._limits.idle / 4, self._sweep)
        oldest = self._loop.time() - self._limits.idle
        while self._flows and next(iter(self._flows.values())).last <= oldest:
            self.drop(next(iter(self._flows)))
        for source in [source for source, count in self._sources.items() if not count]:
            del self._sources[source]


class Flow:
    """One client's socket on the other side."""

    def __init__(self, owner: UdpFlows, client: FlowClient) -> None:
        self._owner = owner
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._sock: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.last = 0.0

    def start(self, opening: Awaitable[socket.socket | None]) -> None:
        self._task = watched("a UDP flow", self._run(opening))

    def send(self, data: bytes) -> None:
        if self._sock is not None:
            self._give(self._sock, data)
        elif len(self._waiting) < WAITING:
            self._waiting.append(data)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    async def _run(self, opening: Awaitable[socket.socket | None]) -> None:
        sock = await opening
        self._task = None
        if sock is None:
            self._owner.drop(self._client)
            return
        self._sock = sock
        self._loop.add_reader(sock, self._readable, sock)
        for data in self._waiting:
            self._give(sock, data)
        self._waiting.clear()

    def _give(self, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except OSError as error:
            log.debug("a packet of %s was dropped: %s", self._client[0], error)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data = sock.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # such as the ICMP answer of a closed port: the next packet may find it open
                log.debug("the flow of %s: %s", self._client[0], error)
                return
            self._owner.touch(self._client)
            self._owner.answer(self._client, data)


def source_of(client: FlowClient) -> str:
    return str(client[0][0]).partition("%")[0]


def ask_destination(sock: socket.socket) -> None:
    """Let the kernel say to which of our addresses a packet came."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def answer_from(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """What the kernel said about a packet's destination, as a wish for the source of its answer (ip(7), ipv6(7)).

    struct in_pktinfo is {ifindex, spec_dst, addr}: the address goes from the third to the second.
    """
    if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
        return level, kind, struct.pack("i", 0) + data[8:12] + bytes(4)
    return level, kind, data
