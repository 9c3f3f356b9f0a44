"""A `Contact` for the steps of a diagnosis that uses a daemon of this host with the same private key.

A second program with the same key would take the session from the daemon. Therefore the state is read from the daemon's
UAPI socket, and hosts inside are queried through its interface, with sockets of this host.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from wyrmhole.control.config.file import Config
from wyrmhole.control.uapi import client
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.errors import DeviceError, UapiError
from wyrmhole.library.common.own_threads import OwnThreads
from wyrmhole.library.common.time_limit import deadline
from wyrmhole.library.diagnosis.asking import ask_by, echo_size, family_of
from wyrmhole.library.diagnosis.finding import BAD, Finding
from wyrmhole.library.diagnosis.probe import HandshakeResult
from wyrmhole.library.sockets import icmp_echo
from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.probes import IpAddress

POLL_SECONDS = 0.2
MAX_DAEMONS = 64
"""Limit of daemons that are queried. A gateway may run hundreds, and each may take seconds until it has timed out."""
_DISCARD = 9
ASK_SECONDS = 6.0
"""Limit for all daemons, which are queried concurrently. The UAPI client gives up after 5 s."""
_threads = OwnThreads(16)


async def find_daemon(config: Config, directory: str = DEFAULT_DIRECTORY) -> DaemonContact | Finding | None:
    """Return the daemon with the configuration's key, or a finding if there may be one that cannot be queried."""
    names = await _threads.run(lambda: client.interfaces(directory))
    stem = Path(config.source).stem
    names.sort(key=lambda name: name != stem)
    asked = {asyncio.ensure_future(_ask(name, directory)): name for name in names[:MAX_DAEMONS]}
    if not asked:
        return None
    await asyncio.wait(asked, timeout=ASK_SECONDS)
    for question, name in asked.items():
        answer = question.result() if question.done() else "it does not answer"
        question.cancel()
        if isinstance(answer, str):
            if name == stem:
                return _cannot_query(name, answer)
        elif answer.private_key == config.interface.private_key:
            return _usable(answer, directory)
    return None


async def _ask(name: str, directory: str) -> DeviceStatus | str:
    """Return a daemon's status, or the reason why it is unknown."""
    try:
        return await _threads.run(lambda: client.get(name, directory))
    except (DeviceError, UapiError) as error:
        return str(error)


def _usable(status: DeviceStatus, directory: str) -> DaemonContact | Finding:
    if client.is_link(status.name):
        return DaemonContact(status, directory)
    found = f"a daemon serves {status.name} with this key, and its interface is in another network namespace"
    return Finding("daemon", BAD, found, "run the doctor in that namespace: a handshake from here would disturb it")


def _cannot_query(name: str, reason: str) -> Finding:
    """Assume the same key, because an unprivileged user sees only the name, and a stolen session would do more harm."""
    advice = (
        "run the doctor as root, so that it can query the daemon; or stop the daemon; or copy the file to another name"
    )
    found = f"a daemon already serves {name}, probably with this key, and a handshake would take its session: {reason}"
    return Finding("daemon", BAD, found, advice)


class DaemonContact:
    """Sends packets only through the daemon's interface."""

    def __init__(self, status: DeviceStatus, directory: str = DEFAULT_DIRECTORY) -> None:
        self.name = status.name
        self._status = status
        self._directory = directory
        self._numbers = itertools.count(os.getpid() << 8)

    @property
    def mtu(self) -> int:
        try:
            return int(Path(f"/sys/class/net/{self.name}/mtu").read_text())
        except (OSError, ValueError):
            return IPV6_MINIMUM_MTU

    def drops(self) -> Mapping[DropReason, int]:
        """Return nothing, because the UAPI that all daemons share has no drop counters."""
        return {}

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        wanted = list(keys)
        clock = SystemClock()
        end = clock.boottime() + int(seconds * SECOND)
        for key in wanted:
            self._request_session(key)
        while True:
            peers = {peer.public_key: peer for peer in await self._peers()}
            has_session = {key: key in peers and _is_fresh(peers[key], clock.wall()) for key in wanted}
            if all(has_session.values()) or clock.boottime() >= end:
                return {key: HandshakeResult(has, initiations=2) for key, has in has_session.items()}
            await asyncio.sleep(POLL_SECONDS)

    async def _peers(self) -> tuple[PeerStatus, ...]:
        try:
            return (await _threads.run(lambda: client.get(self.name, self._directory))).peers
        except (DeviceError, UapiError) as error:
            raise OSError(0, str(error)) from error

    def _request_session(self, key: PublicKey) -> None:
        """Send a packet to the peer through the daemon, which then starts a handshake if it has no session."""
        for peer in self._status.peers:
            if peer.public_key == key and peer.allowed_ips:
                prefix = peer.allowed_ips[0]
                family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
                size = prefix.bits // 8
                host = prefix.network + (1 if prefix.length < prefix.bits else 0)
                try:
                    with self._socket(family, socket.SOCK_DGRAM, 0) as sock:
                        sock.sendto(b"", (socket.inet_ntop(family, host.to_bytes(size, "big")), _DISCARD))
                except OSError:
                    return

    def _socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """Return a socket whose packets always leave through the daemon's interface, regardless of the routes."""
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.name.encode())
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        family, size = family_of(target), max(0, echo_size(target, length))
        sock = self._socket(family, socket.SOCK_RAW, icmp_echo.protocol_of(family))
        async with deadline(seconds, lambda: f"{target} did not answer a ping of {length} bytes within {seconds:g} s"):
            return await icmp_echo.echo(sock, (str(target), 0), next(self._numbers) & 0xFFFFFFFF, size)

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        with self._socket(family_of(target), socket.SOCK_DGRAM, 0) as sock:
            return await ask_by(sock, target, port, payload, seconds)


def _is_fresh(peer: PeerStatus, wall: int) -> bool:
    seconds, _ = peer.last_handshake
    return seconds > 0 and wall - seconds * SECOND < Timings().reject_after
