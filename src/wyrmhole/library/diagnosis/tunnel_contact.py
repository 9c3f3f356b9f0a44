"""A running tunnel as the steps of `diagnosis` want it: its sessions, pings and questions by its own sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from wyrmhole.library.diagnosis.probe import HandshakeResult, IpAddress, Refused
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire import probes
from wyrmhole.wire.ip import MAX_PACKET_SIZE

if TYPE_CHECKING:
    from wyrmhole.library.tunnel import Tunnel

_ECHO_HEADER = 8


class TunnelContact:
    def __init__(self, tunnel: Tunnel, mtu: int) -> None:
        self._tunnel = tunnel
        self._mtu = mtu

    @property
    def mtu(self) -> int:
        return self._mtu

    def drops(self) -> Mapping[DropReason, int]:
        return {DropReason(name): count for name, count in self._tunnel.stats().drops.items()}

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        wanted = list(keys)
        results = await asyncio.gather(*(self._handshake(key, seconds) for key in wanted))
        return dict(zip(wanted, results, strict=True))

    async def _handshake(self, key: PublicKey, seconds: float) -> HandshakeResult:
        try:
            await self._tunnel.peers[key].wait_handshake(seconds)
        except TimeoutError:
            return HandshakeResult(initiations=2)
        return HandshakeResult(completed=True)

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        size = length - probes.header_size(target.version) - _ECHO_HEADER
        return await self._tunnel.ping(str(target), timeout=seconds, size=size)

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        with await self._tunnel.open_socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(target), port))
            await loop.sock_sendall(sock, payload)
            try:
                async with asyncio.timeout(seconds):
                    return await loop.sock_recv(sock, MAX_PACKET_SIZE)
            except ConnectionRefusedError as error:
                raise Refused(target, is_port_unreachable=True, is_too_big=False) from error
