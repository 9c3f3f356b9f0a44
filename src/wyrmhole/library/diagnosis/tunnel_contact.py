"""A `Contact` for the steps of a diagnosis that uses the sessions and sockets of a running tunnel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol

from wyrmhole.control.config.file import Config
from wyrmhole.library.diagnosis.asking import ask_by, echo_size, family_of
from wyrmhole.library.diagnosis.finding import Finding
from wyrmhole.library.diagnosis.probe import HandshakeResult
from wyrmhole.library.diagnosis.steps import diagnose_running
from wyrmhole.library.peers import Stats
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.probes import IpAddress


class AskablePeer(Protocol):
    async def wait_handshake(self, timeout: float | None = None) -> None: ...


class AskableTunnel(Protocol):
    """The part of `Tunnel` that a diagnosis uses."""

    @property
    def peers(self) -> Mapping[str, AskablePeer]: ...

    def stats(self) -> Stats: ...

    async def ping(self, host: str, *, timeout: float | None = 5.0, size: int = 56, family: int = 0) -> float: ...

    async def open_socket(self, family: int, type: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket: ...


async def diagnose_tunnel(tunnel: AskableTunnel, config: Config, names: Sequence[str]) -> AsyncIterator[Finding]:
    """Diagnose a running tunnel of this configuration."""
    async for finding in diagnose_running(config, TunnelContact(tunnel, tunnel.stats().mtu), names=names):
        yield finding


class TunnelContact:
    def __init__(self, tunnel: AskableTunnel, mtu: int) -> None:
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
            await self._tunnel.peers[key.base64()].wait_handshake(seconds)
        except TimeoutError:
            return HandshakeResult(initiations=2)
        return HandshakeResult(completed=True)

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        return await self._tunnel.ping(str(target), timeout=seconds, size=echo_size(target, length))

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        with await self._tunnel.open_socket(family_of(target), socket.SOCK_DGRAM) as sock:
            return await ask_by(sock, target, port, payload, seconds)
