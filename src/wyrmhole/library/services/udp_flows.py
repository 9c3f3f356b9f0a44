"""UDP forwarding: each client of a listening socket gets its own connected socket on the other side.

A flow is identified by the client's address. If the listener is bound to all addresses, the address that the client
wrote to belongs to it as well, so that answers leave from there. Flows are kept in the order of their last packet, so
that the ones idle for too long, and the one to drop when there are too many, are at the front. Up to `WAITING` packets
of a flow wait while its socket is opened. A packet that a socket does not accept at once is dropped, like in a router.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from wyrmhole.library.common.descriptors import SERVICES, room
from wyrmhole.library.common.socket_address import SocketAddress
from wyrmhole.library.common.supervise import watched
from wyrmhole.library.services.dialer import is_loopback
from wyrmhole.library.services.service import Limits, reason_of
from wyrmhole.wire.ip import MAX_PACKET_SIZE

log = logging.getLogger(__name__)

BATCH = 64
"""Packets to move before yielding to others."""
WAITING = 16
"""Packets of a flow that may wait for its socket: at most 16 x 64 KiB."""
LARGEST = MAX_PACKET_SIZE
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
CONTROL = socket.CMSG_SPACE(20)

Control: TypeAlias = tuple[tuple[int, int, bytes], ...]
FlowClient: TypeAlias = tuple[SocketAddress, Control]
"""An address, and the control message that makes answers leave from the address that the client wrote to."""


class UdpFlows:
    """The flows of one listener, which must be bound and non-blocking, and which it owns.

    `connect` opens the other socket of a flow or raises OSError, and limits its own time.
    """

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
            receive_destinations(listener)
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
        """Send a packet from the other side to the client."""
        address, control = client
        try:
            if control:
                self._listener.sendmsg([data], control, 0, address)
            else:
                self._listener.sendto(data, address)
        except OSError as error:
            log.debug("%s: dropped a packet to %s: %s", self._name, address, error)

    def touch(self, client: FlowClient) -> None:
        self._flows.move_to_end(client)
        self._flows[client].last = self._loop.time()

    def drop(self, client: FlowClient) -> None:
        flow = self._flows.pop(client, None)
        if flow is not None:
            self._sources[source_of(client)] -= 1
            SERVICES.release(1)
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
        """Return the flow of a client, or None if there is no room for another."""
        flow = self._flows.get(client)
        if flow is None:
            self._make_room(source_of(client))
            if not SERVICES.take(1):
                log.debug("%s: dropped a packet of %s: no free descriptors", self._name, client[0])
                return None
            flow = self._flows[client] = Flow(self, client)
            self._sources[source_of(client)] += 1
            flow.start(self._open(client))
        self.touch(client)
        return flow

    def _make_room(self, source: str) -> None:
        """Drop a flow if needed: one of this source if it has too many, otherwise the one that was idle longest."""
        whole = self._limits.flows
        if not is_loopback(source) and self._sources[source] >= self._limits.share(whole):
            self.drop(next(client for client in self._flows if source_of(client) == source))
        elif len(self._flows) >= whole or (self._flows and SERVICES.taken >= room()):
            self.drop(next(iter(self._flows)))

    async def _open(self, client: FlowClient) -> socket.socket | None:
        try:
            return await self._connect()
        except OSError as error:
            log.info("%s: cannot open a flow for %s: %s", self._name, client[0], reason_of(error))
            return None

    def _sweep(self) -> None:
        """Drop the flows that were idle for too long."""
        self._timer = self._loop.call_later(self._limits.idle / 4, self._sweep)
        oldest = self._loop.time() - self._limits.idle
        while self._flows and next(iter(self._flows.values())).last <= oldest:
            self.drop(next(iter(self._flows)))
        for source in [source for source, count in self._sources.items() if not count]:
            del self._sources[source]


class Flow:
    """A client's socket on the other side."""

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
            self._send_on(self._sock, data)
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
            self._send_on(sock, data)
        self._waiting.clear()

    def _send_on(self, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except OSError as error:
            log.debug("dropped a packet of %s: %s", self._client[0], error)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data = sock.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # for example ICMP from a closed port, which may be open for the next packet
                log.debug("flow of %s: %s", self._client[0], error)
                return
            self._owner.touch(self._client)
            self._owner.answer(self._client, data)


def source_of(client: FlowClient) -> str:
    return str(client[0][0]).partition("%")[0]


def receive_destinations(sock: socket.socket) -> None:
    """Let the kernel report the destination address of each packet."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def answer_from(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """Turn the control message with a packet's destination into one that sets the source of an answer (ip(7), ipv6(7)).

    struct in_pktinfo is {ifindex, spec_dst, addr}: the address moves from the third field to the second.
    """
    if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
        return level, kind, struct.pack("i", 0) + data[8:12] + bytes(4)
    return level, kind, data
