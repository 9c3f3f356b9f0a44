"""A world for protocol tests: interfaces, a virtual clock, and simulated datagrams.

`World` carries the datagrams. Its filters decide the fate of each one, and only a seed introduces randomness.
"""

from __future__ import annotations

import heapq
import itertools
import random as random_module
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.model_plane import ModelPlane
from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.events import Event
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.protocol.peer import Peer
from wyrmhole.protocol.timer_wheel import TICK_SHIFT
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

MakePlane = Callable[[Callable[[], int], Callable[[Endpoint, bytes], None]], Any]
"""Makes a data plane from a clock and a transmit function: a `ModelPlane`, or an `EnginePlane`."""
MS = 1_000_000


@dataclass(frozen=True)
class Flight:
    """One datagram on the wire: its sender, source, destination and time."""

    at: int
    sender: str
    source: Endpoint
    destination: Endpoint
    data: bytes

    @property
    def kind(self) -> int:
        return self.data[0]


class Node:
    def __init__(self, world: World, name: str, endpoint: Endpoint, key_seed: int) -> None:
        self.world, self.name, self.endpoint = world, name, endpoint
        self.wall_offset = 1_700_000_000 * SECOND
        self.number = len(world.nodes) + 1
        self.plane = world.make_plane(world.clock, self._transmit)
        self.plane.number = self.number
        self.interface = Interface(
            self.plane, random=world.random.randbytes, wall_clock=self._wall, now=world.now, timings=world.timings
        )
        self.key = PrivateKey(random_module.Random(key_seed).randbytes(32))
        self.interface.set_private_key(self.key, world.now)
        self.events: list[Event] = []

    def _wall(self) -> int:
        return self.world.now + self.wall_offset

    def _transmit(self, destination: Endpoint, data: bytes) -> None:
        self.world.transmit(Flight(self.world.now, self.name, self.endpoint, destination, data))

    def know(self, other: Node, *, endpoint: bool = True, psk: PresharedKey | None = None) -> Peer:
        peer = self.interface.add_peer(other.key.public_key())
        assert peer is not None
        self.interface.insert_allowed_ip(peer, Prefix(4, 10 << 24 | other.number << 8 | 1, 32))
        if endpoint:
            self.interface.set_endpoint(peer, other.endpoint, self.world.now)
        self.interface.set_preshared_key(peer, psk)
        return peer

    def peer_of(self, other: Node) -> Peer:
        peer = self.interface.peer(other.key.public_key())
        assert peer is not None
        return peer

    def send(self, other: Node, payload: bytes = b"data") -> None:
        """Handle a packet from the TUN for the other node."""
        self.plane.send_packet(self.peer_of(other).id, payload)
        self.settle()

    def settle(self) -> None:
        while self.plane.reports:
            self.interface.handle_report(self.plane.reports.popleft(), self.world.now)
        while (event := self.interface.poll_event()) is not None:
            self.events.append(event)

    @property
    def received(self) -> list[bytes]:
        return [payload for _, payload in self.plane.delivered]


class World:
    """Virtual time is in ns. Each filter receives a datagram and returns the flights to deliver ([] to drop it)."""

    def __init__(
        self, *, seed: int = 1, delay: int = 5 * MS, timings: Timings | None = None, plane: MakePlane = ModelPlane
    ) -> None:
        self.make_plane = plane
        self.now = 1000 * SECOND
        self.random = random_module.Random(seed)
        self.delay = delay
        self.timings = timings or Timings()
        self.nodes: dict[str, Node] = {}
        self.wire: list[Flight] = []
        """All datagrams ever sent, dropped or not."""
        self.filters: list[Callable[[Flight], list[Flight]]] = []
        self._queue: list[tuple[int, int, Flight]] = []
        self._sequence = 0

    def clock(self) -> int:
        return self.now

    def node(self, name: str, host: str | None = None) -> Node:
        number = len(self.nodes) + 1
        node = self.nodes[name] = Node(self, name, Endpoint(host or f"192.0.2.{number}", 51820), number)
        node.interface.up(self.now)
        return node

    def pair(self, *, psk: PresharedKey | None = None) -> tuple[Node, Node]:
        """Return two nodes that are configured as peers, with endpoints."""
        a, b = self.node("a"), self.node("b")
        a.know(b, psk=psk)
        b.know(a, psk=psk)
        return a, b

    def transmit(self, flight: Flight) -> None:
        self.wire.append(flight)
        flights = [flight]
        for each in self.filters:
            flights = [out for flight in flights for out in each(flight)]
        for flight in flights:
            self.carry(flight, self.delay)

    def carry(self, flight: Flight, delay: int) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay, self._sequence, flight))

    def run(self, duration: int) -> None:
        """Advance the time: deliver datagrams and fire timers when they are due."""
        end = self.now + duration
        while (at := self._next()) is not None and at <= end:
            self.now = max(self.now, at)
            self._deliver_due()
            for node in self.nodes.values():
                node.interface.handle_timeout(self.now)
                node.settle()
        self.now = end

    def _next(self) -> int | None:
        times = [timeout for node in self.nodes.values() if (timeout := node.interface.poll_timeout()) is not None]
        if self._queue:
            times.append(self._queue[0][0])
        return min(times) if times else None

    def _deliver_due(self) -> None:
        while self._queue and self._queue[0][0] <= self.now:
            _, _, flight = heapq.heappop(self._queue)
            for node in self.nodes.values():
                if node.endpoint == flight.destination:
                    node.plane.receive(flight.data, flight.source)
                    node.settle()

    def sent(self, kind: int, sender: str | None = None, since: int = 0) -> list[Flight]:
        """Return the datagrams that were sent, by type and sender."""
        return [
            flight
            for flight in self.wire
            if flight.kind == kind and flight.at >= since and sender in (None, flight.sender)
        ]


def lose(*kinds: int, sender: str | None = None) -> Callable[[Flight], list[Flight]]:
    """Return a filter that drops the given message types (by default all), of one sender or of all."""

    def filter_(flight: Flight) -> list[Flight]:
        hit = (not kinds or flight.kind in kinds) and sender in (None, flight.sender)
        return [] if hit else [flight]

    return filter_


TICK = 1 << TICK_SHIFT


KEEPALIVE_SIZE = 32


def connected(world: World) -> tuple[Node, Node]:
    a, b = world.pair()
    a.send(b, b"hello")
    world.run(SECOND)
    assert b.received == [b"hello"]
    return a, b


def gaps(flights: list[Flight]) -> list[int]:
    return [later.at - earlier.at for earlier, later in itertools.pairwise(flights)]


def keep(kept: list[Flight], kind: int) -> Callable[[Flight], list[Flight]]:
    """Return a filter that moves messages of this type from the wire into the list."""

    def filter_(flight: Flight) -> list[Flight]:
        if flight.kind != kind:
            return [flight]
        kept.append(flight)
        return []

    return filter_


def data(flights: list[Flight]) -> list[Flight]:
    return [flight for flight in flights if len(flight.data) > KEEPALIVE_SIZE]


MakeWorld = Callable[..., World]
"""A `World` with a given data plane. Tests pass its other arguments."""
