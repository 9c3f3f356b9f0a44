"""A device without an interface, which performs handshakes and queries hosts inside. It needs no privileges.

It consists of the real protocol and the portable engine over a real UDP socket. Instead of a TUN it has a queue in
memory: `Probe` writes its own packets (wire/probes.py) into it and reads the answers. The host is not changed. The
probe uses a free port, so the peer's endpoint for this key moves to that port until the real tunnel sends again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

from wyrmhole.control.config.change import set_change
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.assemble import make_device
from wyrmhole.device.clock import SystemClock
from wyrmhole.errors import TunnelError
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol import events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire import probes
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.probes import IpAddress

POLL_SECONDS = 0.002
"""Interval between two checks for an answer, because the queue in memory wakes no reader."""
MAX_ANSWERS = 256
"""Limit of unread answers. The oldest are dropped."""
_FIRST_PORT = 49_152
T = TypeVar("T")


@dataclass(slots=True)
class HandshakeResult:
    """The outcome of one attempt. `refused` is the reason why a response was refused; None means no response."""

    completed: bool = False
    initiations: int = 0
    cookie: bool = False
    refused: DropReason | None = None

    @property
    def is_answered(self) -> bool:
        return self.completed or self.cookie or self.refused is not None


class ProbeRefused(OSError):
    """A host or router inside the tunnel answered with an ICMP error."""

    def __init__(self, source: IpAddress, *, is_port_unreachable: bool, is_too_big: bool) -> None:
        what = "the port is closed" if is_port_unreachable else "packet too big" if is_too_big else "unreachable"
        super().__init__(f"{source} answered: {what}")
        self.source = source
        self.is_port_unreachable = is_port_unreachable
        self.is_too_big = is_too_big


@dataclass(slots=True)
class _Attempt:
    """A handshake in progress with a configured peer."""

    result: HandshakeResult = field(default_factory=HandshakeResult)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Probe:
    """A `Contact`, used as an asynchronous context manager. All methods must be called on the loop that entered it."""

    def __init__(self, config: Config, endpoints: Mapping[ConfigEndpoint, Endpoint]) -> None:
        """Make the device. `endpoints` are the resolved endpoints. Peers without one are ignored."""
        self._config = config
        self._endpoints = endpoints
        self._clock = SystemClock()
        self._tun = MemoryTun("probe", config.interface.mtu or DEFAULT_MTU)
        self._device = make_device(self._tun, engine="portable", on_event=self._handle_event)
        self._attempts: dict[PublicKey, _Attempt] = {}
        self._numbers = itertools.count(1)
        self._answers: deque[probes.Answer] = deque(maxlen=MAX_ANSWERS)

    async def __aenter__(self) -> Self:
        """Start the device. Raises ConfigError, DeviceError."""
        change = set_change(self._config, self._endpoints.get)
        try:
            # Any free port, because the tunnel's daemon may use the configured one.
            await self._device.start(replace(change, listen_port=0))
        except BaseException:
            await self._device.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._device.close()

    @property
    def mtu(self) -> int:
        return self._tun.mtu

    def drops(self) -> dict[DropReason, int]:
        return self._device.drops()

    def _source_for(self, target: IpAddress) -> IpAddress:
        for address in self._config.interface.addresses:
            if address.version == target.version:
                return address.ip
        raise TunnelError(0, f"cannot query {target}: the tunnel has no IPv{target.version} Address")

    # Handshakes

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        """Start a handshake with every peer. Return the outcomes as soon as all are known, or after `seconds`."""
        self._attempts = {key: _Attempt() for key in keys}
        for key in self._attempts:
            self._device.request_handshake(key)
        try:
            async with asyncio.timeout(seconds):
                for attempt in self._attempts.values():
                    await attempt.done.wait()
        except TimeoutError:
            pass
        return {key: attempt.result for key, attempt in self._attempts.items()}

    def _handle_event(self, event: events.Event) -> None:
        if isinstance(event, events.CookieReplySent) or event.peer is None:
            return
        attempt = self._attempts.get(event.peer)
        if attempt is None or attempt.done.is_set():
            return
        result = attempt.result
        match event:
            case events.InitiationSent():
                result.initiations += 1
            case events.CookieReceived():
                result.cookie = True
            case events.HandshakeRefused():
                result.refused = event.reason
                attempt.done.set()
            case events.HandshakeCompleted():
                result.completed = True
                attempt.done.set()

    # Packets

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        """Send an ICMP echo in a packet of `length` bytes and return the seconds until the answer.

        Raises TimeoutError, ProbeRefused.
        """
        identity = next(self._numbers)
        packet = probes.echo_request(self._source_for(target), target, identity, length)
        begin = self._clock.boottime()

        def fits(answer: probes.Answer) -> bool:
            return isinstance(answer, probes.EchoReply | probes.IcmpRefusal) and answer.identity == identity

        await self._ask(packet, fits, seconds, f"{target} did not answer a ping of {length} bytes")
        return (self._clock.boottime() - begin) / SECOND

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        """Return the answer of a UDP service. Raises TimeoutError, ProbeRefused."""
        own = _FIRST_PORT + next(self._numbers) % 16_000
        packet = probes.udp_packet(self._source_for(target), own, target, port, payload)

        def fits(answer: probes.Answer) -> bool:
            if isinstance(answer, probes.UdpReply):
                return (answer.source, answer.source_port, answer.port) == (target, port, own)
            return isinstance(answer, probes.IcmpRefusal) and answer.identity == own

        answer = await self._ask(packet, fits, seconds, f"{target} port {port} did not answer")
        assert isinstance(answer, probes.UdpReply)
        return answer.payload

    async def _ask(
        self, packet: bytes, fits: Callable[[probes.Answer], bool], seconds: float, silence: str
    ) -> probes.Answer:
        self._tun.inject(packet)
        answer: probes.Answer = await self._wait(lambda: self._answer(fits), seconds, silence)
        if isinstance(answer, probes.IcmpRefusal):
            raise ProbeRefused(
                answer.source, is_port_unreachable=answer.is_port_unreachable, is_too_big=answer.is_too_big
            )
        return answer

    def _answer(self, fits: Callable[[probes.Answer], bool]) -> probes.Answer | None:
        """Return the answer that fits, and keep the others for concurrent queries."""
        while self._tun.delivered:
            if (answer := probes.read_answer(self._tun.pop())) is not None:
                self._answers.append(answer)
        found = next((answer for answer in self._answers if fits(answer)), None)
        if found is not None:
            self._answers.remove(found)
        return found

    async def _wait(self, look: Callable[[], T | None], seconds: float, silence: str) -> T:
        end = self._clock.boottime() + int(seconds * SECOND)
        while (found := look()) is None:
            if self._clock.boottime() >= end:
                raise TimeoutError(f"{silence} within {seconds:g} s")
            await asyncio.sleep(POLL_SECONDS)
        return found
