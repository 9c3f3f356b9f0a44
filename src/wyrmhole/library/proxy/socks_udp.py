"""The relay of UDP ASSOCIATE (RFC 1928, 7): packets have a header on this host, and none inside the tunnel.

The client's packets arrive at a socket of this host, on the address of its TCP connection. Only the host of that
connection may use the socket, and only from one port. Inside the tunnel, one socket per family sends the packets to any
number of destinations. Answers are relayed only from destinations that the client has sent to. That list is bounded,
and prevents hosts inside from reaching the client unasked. A name is resolved inside while its packets wait; few names
and packets may wait. A packet that cannot be sent at once is dropped, like in a router.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import OrderedDict
from functools import partial

from wyrmhole.library.common.socket_address import SocketAddress
from wyrmhole.library.common.supervise import watched
from wyrmhole.library.proxy.socks5 import SocksError, build_packet, parse_packet
from wyrmhole.library.services.dialer import DATAGRAM, TunnelSide, non_blocking
from wyrmhole.wire.ip import MAX_PACKET_SIZE

log = logging.getLogger(__name__)

BATCH = 64
"""Packets to move before yielding to others."""
LARGEST = MAX_PACKET_SIZE
DESTINATIONS = 1024
"""Limit of remembered destinations; the least recently used is forgotten first."""
COST = 3
"""Descriptors in addition to the TCP connection: one on this host, and one inside for each family."""
LOOKUPS = 8
"""Limit of names that are resolved at once; packets to further names are dropped."""


class UdpAssociation:
    """Relays the packets of one client.

    `listener` is bound on this host. `client` is the only host that may use it, with its port, or 0 if that is unknown.
    """

    def __init__(self, side: TunnelSide, listener: socket.socket, client: tuple[str, int]) -> None:
        self._side = side
        self._listener = non_blocking(listener)
        self._allowed = ipaddress.ip_address(client[0].partition("%")[0])
        self._port = client[1]
        self._client: SocketAddress | None = None
        self._loop = asyncio.get_running_loop()
        self._inside: dict[int, socket.socket] = {}
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lookups: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._loop.add_reader(listener, self._from_client)

    def close(self) -> None:
        for task in self._lookups:
            task.cancel()
        for sock in (self._listener, *self._inside.values()):
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                sock.close()

    def _from_client(self) -> None:
        for _ in range(BATCH):
            try:
                data, address = self._listener.recvfrom(LARGEST)
            except OSError:  # no more packets, or an ICMP error for a packet to the client
                return
            if not self._is_client(address):
                continue
            try:
                host, port, payload = parse_packet(data)
            except SocksError as error:
                log.debug("dropped a UDP packet: %s", error)
            else:
                self._pass_on(host, port, payload)

    def _is_client(self, address: SocketAddress) -> bool:
        """Accept the first sender from the client's host (and port, if it is known), and then only this sender."""
        if self._client is None:
            if ipaddress.ip_address(address[0].partition("%")[0]) != self._allowed or self._port not in (0, address[1]):
                return False
            self._client = address
        return address == self._client

    def _pass_on(self, host: str, port: int, payload: bytes) -> None:
        sock = self._inside.get(family_of_text(host))
        if sock is not None:
            self._send(sock, (host, port), payload)
        elif len(self._lookups) < LOOKUPS:
            task = watched("a UDP association", self._look_up(host, port, payload))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _look_up(self, host: str, port: int, payload: bytes) -> None:
        """Resolve a name, or open the socket for the first packet of a family. The resolver caches answers."""
        try:
            infos = await self._side.addresses(host, port, DATAGRAM)
            async with self._opening:
                sock = self._inside.get(infos[0][0]) or await self._open(infos[0][0])
        except OSError as error:
            log.debug("dropped a UDP packet to %s: %s", host, error)
            return
        self._send(sock, infos[0][4], payload)

    async def _open(self, family: int) -> socket.socket:
        sock = await self._side.socket(family, DATAGRAM)
        self._inside[family] = sock
        self._loop.add_reader(sock, partial(self._from_inside, sock))
        return sock

    def _send(self, sock: socket.socket, address: SocketAddress, payload: bytes) -> None:
        known = (str(ipaddress.ip_address(address[0])), address[1])
        self._known[known] = None
        self._known.move_to_end(known)
        if len(self._known) > DESTINATIONS:
            self._known.popitem(last=False)
        try:
            sock.sendto(payload, address)
        except OSError as error:
            log.debug("dropped a UDP packet to %s: %s", known, error)

    def _from_inside(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, address = sock.recvfrom(LARGEST)
            except OSError:
                return
            host = address[0].partition("%")[0]
            if (host, address[1]) in self._known and self._client is not None:
                try:
                    self._listener.sendto(build_packet(host, address[1], data), self._client)
                except OSError as error:
                    log.debug("dropped a UDP packet to the client: %s", error)


def family_of_text(host: str) -> int:
    """Return the family of a literal, or 0 for a name."""
    try:
        return socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    except ValueError:
        return 0
