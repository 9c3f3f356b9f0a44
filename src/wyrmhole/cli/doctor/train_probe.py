"""`doctor --to`: test whether GSO batches reach a peer, or only single datagrams.

The test uses a running tunnel of any daemon; the peer only has to answer pings. Echo requests of one size that are
written at once are read together by the daemon and sent in batches. Requests that are 20 ms apart leave as single
datagrams. Both kinds alternate, and their answers are compared: ordinary loss affects both alike and is not a finding.

The kernel's counter of sent UDP messages (`Udp OutDatagrams`) counts a batch once and so shows whether batches were
sent. If none were, because the daemon sends single datagrams to this peer or `gso` is off, the result is inconclusive.
A run takes less than 20 seconds.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wyrmhole.cli.doctor.checks import Verdict
from wyrmhole.control.uapi import client
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.errors import DeviceError, UapiError, WyrmholeError
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.system import libc
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.messages import DEFAULT_MTU

BURSTS = (4, 16, 32)
PINGS_PER_SIZE = 96
CLEAR = 16
"""The number of pings in bursts after which a clear loss ends the test."""
SINGLES = 16
APART = 0.02
"""Seconds between two single requests, so that the daemon has sent the first before it reads the second."""
PATIENCE = 1.0
LEAST_PATIENCE = 0.25
"""After ten round trips without an answer, but within these seconds, the missing answers count as lost."""
FIRST_PATIENCE = 6.0
"""Seconds to wait for the first answer, which may require a handshake (two initiations, 5 s apart)."""
LARGEST = 1000
HEADERS = 48
_ECHO = struct.Struct("!BBHHH")
_ICMP = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    device: DeviceStatus
    peer: PeerStatus
    address: Address


@dataclass(slots=True)
class Tally:
    sent: int = 0
    answered: int = 0
    sends: int = 0
    """UDP messages that this host sent meanwhile, including those of other programs."""

    @property
    def loss(self) -> float:
        return 1 - self.answered / self.sent if self.sent else 0.0

    def add(self, other: Tally) -> None:
        self.sent += other.sent
        self.answered += other.answered
        self.sends += other.sends


def find_target(text: str) -> ProbeTarget:
    """Return a peer of a running tunnel, given its public key or an address inside. Raises WyrmholeError."""
    devices = [device for name in client.interfaces() if (device := _status(name)) is not None]
    key = _key_of(text)
    if key is not None:
        return _by_key(devices, key)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise WyrmholeError(f"{text!r} is neither a public key nor an address inside a tunnel") from None
    owners = [
        (prefix.length, ProbeTarget(device, peer, address))
        for device in devices
        for peer in device.peers
        for prefix in peer.allowed_ips
        if prefix.version == address.version
        and int(address) >> (address.max_prefixlen - prefix.length)
        == prefix.network >> (address.max_prefixlen - prefix.length)
    ]
    if not owners:
        raise WyrmholeError(f"no running tunnel has a peer for {text} (tunnels: {_names(devices)})")
    return max(owners, key=lambda owner: owner[0])[1]


def _status(name: str) -> DeviceStatus | None:
    """Return a daemon's status.

    None if it is ending, belongs to another user, or has its interface in another network namespace.
    """
    try:
        socket.if_nametoindex(name)
        return client.get(name)
    except (DeviceError, UapiError, OSError):
        return None


def _key_of(text: str) -> PublicKey | None:
    with suppress(ValueError):
        return PublicKey.from_base64(text)
    return None


def _by_key(devices: Sequence[DeviceStatus], key: PublicKey) -> ProbeTarget:
    for device in devices:
        for peer in device.peers:
            if peer.public_key == key:
                for prefix in peer.allowed_ips:
                    if prefix.length == (32 if prefix.version == 4 else 128):
                        return ProbeTarget(device, peer, _host(prefix.version, prefix.network))
                raise WyrmholeError(
                    f"the AllowedIPs of this peer of {device.name} are networks only: give an address to ping"
                )
    raise WyrmholeError(f"no running tunnel has this peer (tunnels: {_names(devices)})")


def _host(version: int, number: int) -> Address:
    return ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)


def _names(devices: Sequence[DeviceStatus]) -> str:
    return ", ".join(device.name for device in devices) or "none that this user may query; try as root"


class Pinger:
    """Sends echo requests to one address through one interface. Raises OSError if raw sockets are not permitted."""

    def __init__(self, interface: str, address: Address, size: int) -> None:
        family, protocol, self._request, self._reply = _ICMP[address.version]
        self._is_v4 = address.version == 4
        self._identity = os.getpid() & 0xFFFF
        self._sequence = 0
        self.patience = PATIENCE
        self._payload = bytes(size)
        self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.connect((str(address), 0))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def send(self, count: int) -> set[int]:
        """Write `count` requests at once, and return their sequence numbers."""
        numbers = [(self._sequence + at) & 0xFFFF for at in range(count)]
        self._sequence += count
        libc.sendmmsg(self._socket.fileno(), [self._message(number) for number in numbers])
        return set(numbers)

    def measure(self) -> bool:
        """Return whether the host answers. If it does, measure the round trip with a second ping."""
        if not self.wait(self.send(1), FIRST_PATIENCE):
            return False
        begin = _seconds()
        if self.wait(self.send(1)):
            self.patience = min(PATIENCE, max(LEAST_PATIENCE, 10 * (_seconds() - begin)))
        return True

    def wait(self, numbers: set[int], patience: float | None = None) -> int:
        """Return how many requests are answered, each at most `patience` seconds after the previous answer."""
        patience = self.patience if patience is None else patience
        waiting = set(numbers)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        end = _seconds() + patience
        while waiting and (left := end - _seconds()) > 0 and poller.poll(left * 1000):
            with suppress(OSError):
                number = self._answer(self._socket.recv(65_536))
                if number in waiting:
                    waiting.discard(number)
                    end = _seconds() + patience
        return len(numbers) - len(waiting)

    def _message(self, number: int) -> bytes:
        message = _ECHO.pack(self._request, 0, 0, self._identity, number) + self._payload
        if not self._is_v4:
            return message
        return message[:2] + struct.pack("!H", checksum(message)) + message[4:]

    def _answer(self, packet: bytes) -> int | None:
        if self._is_v4 and packet:
            packet = packet[(packet[0] & 0xF) * 4 :]
        if len(packet) < _ECHO.size:
            return None
        kind, _, _, identity, number = _ECHO.unpack_from(packet)
        return number if kind == self._reply and identity == self._identity else None


def _seconds() -> float:
    return SystemClock().boottime() / SECOND


def udp_messages() -> int:
    """Return the number of UDP messages sent from this network namespace, a batch counted once; 0 if it is unknown."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        rows = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Udp:")]
        total += int(rows[1][rows[0].index("OutDatagrams")])
    with suppress(OSError, ValueError):
        for line in Path("/proc/net/snmp6").read_text().splitlines():
            if line.startswith("Udp6OutDatagrams"):
                total += int(line.split()[1])
    return total


def probe(target: ProbeTarget) -> Iterator[Verdict]:
    """Yield one finding for each step. The last is the verdict: good, bad, or poor if the test is inconclusive."""
    name, address = target.device.name, str(target.address)
    yield Verdict("good", "peer", f"{target.peer.public_key.base64()} of {name} has {address}")
    mtu = target.device.mtu or DEFAULT_MTU
    pinger = Pinger(name, target.address, max(56, min(LARGEST, mtu - HEADERS)))
    try:
        if not pinger.measure():
            advice = "ping it by hand; if a firewall drops echo requests, permit them for this test"
            yield Verdict("poor", "batches", f"inconclusive: {address} does not answer pings", advice)
            return
        singles, bursts = Tally(), Tally()
        for size in BURSTS:
            alone, together = _alternate(pinger, size)
            singles.add(alone)
            bursts.add(together)
            yield _step(size, alone, together)
        yield verdict(singles, bursts)
    finally:
        pinger.close()


def _alternate(pinger: Pinger, size: int) -> tuple[Tally, Tally]:
    alone, together = Tally(), Tally()
    rounds = PINGS_PER_SIZE // size
    singles = max(1, SINGLES // rounds)
    for _ in range(rounds):
        sent: set[int] = set()
        for _ in range(singles):
            sent |= pinger.send(1)
            time.sleep(APART)
        alone.add(Tally(len(sent), pinger.wait(sent)))
        before = udp_messages()
        answered = pinger.wait(pinger.send(size))
        together.add(Tally(size, answered, udp_messages() - before))
        if together.sent >= CLEAR and is_worse(alone, together):
            break
    return alone, together


def _step(size: int, alone: Tally, together: Tally) -> Verdict:
    found = f"{together.answered} of {together.sent} answered, sent in {together.sends} messages;"
    found += f" singly {alone.answered} of {alone.sent}"
    return Verdict("bad" if is_worse(alone, together) else "good", f"bursts of {size}", found)


def is_worse(singles: Tally, bursts: Tally) -> bool:
    """Whether bursts lose clearly more, four times as much and over 10 %, which is unlikely by chance."""
    return bursts.loss > 0.1 and bursts.loss > 4 * singles.loss


def verdict(singles: Tally, bursts: Tally) -> Verdict:
    if singles.loss > 0.5:
        return Verdict("poor", "batches", f"inconclusive: {singles.loss:.0%} of the single pings were lost too")
    if is_worse(singles, bursts):
        found = f"lost: {bursts.loss:.0%} of the pings in bursts, {singles.loss:.0%} of the single pings"
        advice = "a kernel, hypervisor or driver on the path damages segmented UDP: update it, or start the daemon with"
        return Verdict("bad", "batches", found, f"{advice} WYRMHOLE_WITHOUT=gso")
    if bursts.sends >= bursts.sent:
        advice = (
            "the daemon sends single datagrams to this peer (see its log, and WYRMHOLE_WITHOUT), or it read the bursts "
            "one packet at a time"
        )
        return Verdict("poor", "batches", "inconclusive: no batches were sent, only single datagrams", advice)
    found = f"arrive: {bursts.answered} of {bursts.sent} pings in {bursts.sends} messages were answered"
    return Verdict("good", "batches", found)
