"""ICMP echo (RFC 792, RFC 4443) over a raw socket: report whether a host answers, and how fast."""

from __future__ import annotations

import asyncio
import socket
import struct

from wyrmhole.device.clock import SystemClock
from wyrmhole.library.common.socket_address import SocketAddress
from wyrmhole.library.stacks.stack import Socket
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.checksum import checksum

MAX_SIZE = 65_000
_HEADER = struct.Struct("!BBHHH")
_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
_PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_IP_RECVERR, _IPV6_RECVERR = 11, 25


def protocol_of(family: int) -> int:
    return int(_PROTOCOL[socket.AddressFamily(family)])


async def echo(sock: Socket, address: SocketAddress, identity: int, size: int) -> float:
    """Return the seconds until the answer. The caller limits the wait.

    `sock` is a raw ICMP socket, which is closed at the end. `identity` distinguishes the answer from those to other
    requests. Raises the OSError of an ICMP error, for example EHOSTUNREACH.
    """
    loop = asyncio.get_running_loop()
    with sock:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        sock.connect(address)
        request = _request(sock.family, identity, size)
        clock = SystemClock()
        begin = clock.boottime()
        await loop.sock_sendall(sock, request)
        while True:
            packet = await loop.sock_recv(sock, 65_536)
            if _answers(packet, sock.family, identity):
                return (clock.boottime() - begin) / SECOND


def _request(family: int, identity: int, size: int) -> bytes:
    """Build an echo request. The kernel adds the checksum of ICMPv6, which covers the addresses."""
    kind = _REQUEST[socket.AddressFamily(family)]
    payload = bytes(size)
    message = _HEADER.pack(kind, 0, 0, identity >> 16 & 0xFFFF, identity & 0xFFFF) + payload
    if family == socket.AF_INET6:
        return message
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def _answers(packet: bytes, family: int, identity: int) -> bool:
    if family == socket.AF_INET and packet:
        packet = packet[(packet[0] & 0xF) * 4 :]
    if len(packet) < _HEADER.size:
        return False
    kind, code, _, high, low = _HEADER.unpack_from(packet)
    return (kind, code, high << 16 | low) == (_REPLY[socket.AddressFamily(family)], 0, identity)
