"""The network between the hosts: addresses, NATs, and what it does to datagrams, all of it drawn from one seed."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from random import Random

from wyrmhole.simulation.clock import MILLISECOND, SECOND
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.ip import MAX_PACKET_SIZE

CAPTURED = 512
"""Datagrams that an attacker remembers."""
MAX_SIZE = MAX_PACKET_SIZE


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to each datagram on its way. Times in ns, the others are probabilities. A datagram that is
    `reordered` is up to `late` later; or, where `overtaken` is not 0, held until a drawn number of others, up to that
    one, have overtaken it on the same way."""

    delay: int = 10 * MILLISECOND
    jitter: int = 0
    loss: float = 0.0
    duplicated: float = 0.0
    corrupted: float = 0.0
    truncated: float = 0.0
    reordered: float = 0.0
    late: int = 0
    overtaken: int = 0


@dataclass(slots=True)
class Nat:
    """A NAT in front of one host: a mapping lives `timeout` ns after the last datagram out, then has another port."""

    timeout: int
    mapped: Endpoint | None = None
    used: int = 0
    ports: int = 20_000


@dataclass(frozen=True, slots=True)
class Captured:
    """A datagram as somebody on the path saw it."""

    source: SockAddr
    destination: SockAddr
    data: bytes


class Network:
    """Who is where, and which copies of a datagram arrive when. It delivers nothing itself."""

    def __init__(self, random: Random) -> None:
        self.weather = Weather()
        self.places: dict[tuple[str, int], int] = {}
        self.nats: dict[int, Nat] = {}
        self.cuts: dict[tuple[int, int], int] = {}
        """(from, to): until when nothing passes."""
        self.holes: dict[tuple[int, int], tuple[int, int]] = {}
        """(from, to): (until when, the size of what no longer passes)."""
        self.captured: deque[Captured] = deque(maxlen=CAPTURED)
        self.most_overtaken = 0
        """How many others went before the one that was held longest."""
        self._held: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {}
        """(from, to): a heap of (how many must have passed, how many had when it came, datagram)."""
        self._passed: Counter[tuple[int, int]] = Counter()
        self._random = random

    def place(self, host: int, address: Endpoint) -> None:
        """The host is at this address and no other, unless a NAT is in front of it."""
        for place in [place for place, owner in self.places.items() if owner == host]:
            del self.places[place]
        if host not in self.nats:
            self.places[address.host, address.port] = host

    def source_of(self, host: int, address: Endpoint, now: int) -> SockAddr:
        """Where the world sees the host's datagrams come from."""
        nat = self.nats.get(host)
        if nat is None:
            return address.sockaddr
        if nat.mapped is None or now - nat.used > nat.timeout:
            self.rebind(host)
            nat.ports += 1
            nat.mapped = Endpoint(f"203.0.113.{host}", nat.ports)
            self.places[nat.mapped.host, nat.mapped.port] = host
        nat.used = now
        return nat.mapped.sockaddr

    def rebind(self, host: int) -> None:
        """The NAT forgets its mapping."""
        nat = self.nats[host]
        if nat.mapped is not None:
            self.places.pop((nat.mapped.host, nat.mapped.port), None)
            nat.mapped = None

    def receiver(self, destination: SockAddr, now: int) -> int | None:
        """The host that is at the address now."""
        host = self.places.get((destination[0], destination[1]))
        nat = self.nats.get(-1 if host is None else host)
        return None if nat is not None and now - nat.used > nat.timeout else host

    def copies(self, sender: int, receiver: int, data: bytes, now: int) -> list[tuple[int, bytes]]:
        """What becomes of a datagram: (when, bytes) of each copy that arrives."""
        if self.cuts.get((sender, receiver), 0) > now:
            return []
        until, size = self.holes.get((sender, receiver), (0, MAX_SIZE))
        if until > now and len(data) > size:
            return []
        weather, random = self.weather, self._random
        if weather.loss and random.random() < weather.loss:
            return []
        if weather.overtaken and weather.reordered and random.random() < weather.reordered:
            self._hold((sender, receiver), self._spoil(data))
            return []
        count = 2 if weather.duplicated and random.random() < weather.duplicated else 1
        copies = [(now + self._way(), self._spoil(data)) for _ in range(count)]
        return copies + [(copies[-1][0], late) for late in self._released((sender, receiver))]

    def _hold(self, way: tuple[int, int], data: bytes) -> None:
        passed = self._passed[way]
        most = self.weather.overtaken
        # Limits are where bugs are: one in ten waits for the most there may be.
        after = passed + (most if self._random.random() < 0.1 else self._random.randrange(1, most + 1))
        heapq.heappush(self._held.setdefault(way, []), (after, passed, data))

    def _released(self, way: tuple[int, int]) -> list[bytes]:
        """Another one passed: those that were held for it."""
        self._passed[way] += 1
        held, released = self._held.get(way, []), []
        while held and held[0][0] <= self._passed[way]:
            after, passed, data = heapq.heappop(held)
            self.most_overtaken = max(self.most_overtaken, after - passed)
            released.append(data)
        return released

    def held(self, sender: int, receiver: int) -> list[bytes]:
        """Datagrams that wait to be overtaken."""
        return [data for _, _, data in self._held.get((sender, receiver), [])]

    def all_held(self) -> list[bytes]:
        return [data for held in self._held.values() for _, _, data in held]

    def forget_held(self) -> None:
        self._held.clear()

    def _way(self) -> int:
        weather, random = self.weather, self._random
        way = weather.delay
        if weather.jitter:
            way += random.randrange(weather.jitter)
        if weather.late and weather.reordered and random.random() < weather.reordered:
            way += random.randrange(weather.late)
        return way

    def _spoil(self, data: bytes) -> bytes:
        weather, random = self.weather, self._random
        if weather.corrupted and random.random() < weather.corrupted:
            at = random.randrange(len(data))
            data = data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
        if weather.truncated and random.random() < weather.truncated:
            data = data[: random.randrange(1, len(data))]
        return data


def draw_weather(random: Random) -> Weather:
    """Each fault is absent half of the time, so that they come alone and together."""

    def maybe(most: float) -> float:
        return random.random() * most if random.random() < 0.5 else 0.0

    return Weather(
        delay=random.randrange(1, 150) * MILLISECOND,
        jitter=random.choice((0, 0, 5, 100)) * MILLISECOND,
        loss=maybe(0.5),
        duplicated=maybe(0.3),
        corrupted=maybe(0.01),
        truncated=maybe(0.01),
        reordered=maybe(0.3),
        late=random.choice((20 * MILLISECOND, SECOND, 10 * SECOND)),
    )
