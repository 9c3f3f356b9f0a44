"""Query hosts inside a tunnel with a given datagram socket."""

from __future__ import annotations

import asyncio
import socket

from wyrmhole.library.diagnosis.probe import ProbeRefused
from wyrmhole.wire import probes
from wyrmhole.wire.ip import MAX_PACKET_SIZE
from wyrmhole.wire.probes import IpAddress

_ECHO_HEADER = 8


def family_of(target: IpAddress) -> int:
    return socket.AF_INET if target.version == 4 else socket.AF_INET6


def echo_size(target: IpAddress, length: int) -> int:
    """Return the payload size of an ICMP echo whose packet has `length` bytes in total."""
    return length - probes.header_size(target.version) - _ECHO_HEADER


async def ask_by(sock: socket.socket, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
    """Return what a UDP service answers. Raises TimeoutError, ProbeRefused."""
    loop = asyncio.get_running_loop()
    sock.connect((str(target), port))
    await loop.sock_sendall(sock, payload)
    try:
        async with asyncio.timeout(seconds):
            return await loop.sock_recv(sock, MAX_PACKET_SIZE)
    except ConnectionRefusedError as error:
        raise ProbeRefused(target, is_port_unreachable=True, is_too_big=False) from error
