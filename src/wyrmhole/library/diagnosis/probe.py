"""A device without an interface: it shakes hands and asks hosts inside, needing neither rights nor namespaces.

The real protocol and the portable engine over a real UDP socket; in the place of the TUN is a queue in memory, into
which this file puts packets of its own (wire/probes.py) and from which it takes the answers. Nothing of the host is
changed. Its port is a free one, so the peer's endpoint for this key moves to it until the tunnel proper speaks again.
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
"""Between two looks for an answer: the queue in memory wakes nobody."""
MAX_ANSWERS = 256
"""Kept for a question that still waits; the oldest are dropped."""
_FIRST_PORT = 49_152
T = TypeVar("T")


@dataclass(slots=True)
class HandshakeResult:
    """What came of one attempt. `refused`: why a response was refused; None: no response came at all."""

    completed: bool = False
    initiations: int = 0
    cookie: bool = False
    refused: DropReason | None = None

    @property
    def is_answered(self) -> bool:
        return self.completed or self.cookie or self.refused is not None


class ProbeRefused(OSError):
    """A host or router inside answered with an ICMP error."""

    def __init__(self, source: IpAddress, *, is_port_unreachable: bool, is_too_big: bool) -> None:
        what = "the port is closed" if is_port_unreachable else "packet too big" if is_too_big else "unreachable"
        super().__init__(f"{source} answered: {what}")
        self.source = source
        self.is_port_unreachable = is_port_unreachable
        self.is_too_big = is_too_big


@dataclass(slots=True)
class _Attempt:
    """A peer's handshake under way. The public key of a stranger never gets here: only configured peers are asked."""

    result: HandshakeResult = field(default_factory=HandshakeResult)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Probe:
    """An asynchronous context manager. Everything is called on the loop that entered it."""

    def __init__(self, config: Config, endpoints: Mapping[ConfigEndpoint, Endpoint]) -> None:
        """`endpoints`: where to look for the peers, resolved by the caller. Peers without one are left out."""
        self._config = config
        self._endpoints = endpoints
        self._clock = SystemClock()
        self._tun = MemoryTun("probe", config.interface.mtu or DEFAULT_MTU)
        self._device = make_device(self._tun, engine="portable", on_event=self._handle_event)
        self._attempts: dict[PublicKey, _Attempt] = {}
        self._numbers = itertools.count(1)
        self._answers: deque[probes.Answer] = deque(maxlen=MAX_ANSWERS)

    async def __aenter__(self) -> Self:
        """Raises ConfigError, DeviceError."""
        change = set_change(self._config, self._endpoints.get)
        try:
            # A daemon of this configuration may hold the port.
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
        raise TunnelError(0, f"the tunnel has no IPv{target.version} address to ask {target} from")

    # Handshakes

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        """Begin one with each peer at once; wait until all are decided, at most so long."""
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
        """Seconds until the answer to an ICMP echo of `length` bytes in all. Raises TimeoutError, ProbeRefused."""
        identity = next(self._numbers)
        packet = probes.echo_request(self._source_for(target), target, identity, length)
        begin = self._clock.boottime()

        def fits(answer: probes.Answer) -> bool:
            return isinstance(answer, probes.EchoReply | probes.IcmpRefusal) and answer.identity == identity

        await self._ask(packet, fits, seconds, f"{target} did not answer a ping of {length} bytes")
        return (self._clock.boottime() - begin) / SECOND

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        """What a UDP service answers. Raises TimeoutError, ProbeRefused."""
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
        """Several questions wait at once, and each finds its own among the answers."""
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
