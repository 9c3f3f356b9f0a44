"""The network between the hosts: addresses, NATs, and faults of delivery. All randomness comes from one seed."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from random import Random

from wyrmhole.simulation.clock import MILLISECOND, SECOND
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.ip import MAX_PACKET_SIZE

CAPTURED = 512
"""The number of datagrams that the attacker remembers."""
MAX_SIZE = MAX_PACKET_SIZE


@dataclass(frozen=True, slots=True)
class Weather:
    """The faults that datagrams meet. `delay`, `jitter` and `late` are times in ns.

    The other values are probabilities, except `overtaken`, which is a count. A reordered datagram arrives up to `late`
    later. If `overtaken` is not 0, it is instead held until a random number of datagrams, at most `overtaken`, have
    passed it in the same direction.
    """

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
    """A NAT in front of one host. A mapping ends `timeout` ns after the last datagram out; the next uses a new port."""

    timeout: int
    mapped: Endpoint | None = None
    used: int = 0
    ports: int = 20_000


@dataclass(frozen=True, slots=True)
class Captured:
    """A datagram as seen on the path."""

    source: SockAddr
    destination: SockAddr
    data: bytes


class Network:
    """Knows the hosts' addresses, and decides which copies of a datagram arrive when. It delivers nothing itself."""

    def __init__(self, random: Random) -> None:
        self.weather = Weather()
        self.addresses: dict[tuple[str, int], int] = {}
        """The host at each outer address and port."""
        self.nats: dict[int, Nat] = {}
        self.cuts: dict[tuple[int, int], int] = {}
        """(from, to): the time until which nothing passes."""
        self.holes: dict[tuple[int, int], tuple[int, int]] = {}
        """(from, to): (end time, size of the largest datagram that passes)."""
        self.captured: deque[Captured] = deque(maxlen=CAPTURED)
        self.most_overtaken = 0
        """The largest number of datagrams that have overtaken one."""
        self._held: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {}
        """(from, to): a heap of (count of passed datagrams at which to release, count when held, datagram)."""
        self._passed: Counter[tuple[int, int]] = Counter()
        self._random = random

    def place(self, host: int, address: Endpoint) -> None:
        """Move the host to this address. Behind a NAT it has none."""
        for former in [former for former, owner in self.addresses.items() if owner == host]:
            del self.addresses[former]
        if host not in self.nats:
            self.addresses[address.host, address.port] = host

    def source_of(self, host: int, address: Endpoint, now: int) -> SockAddr:
        """Return the source address of the host's datagrams as others see it."""
        nat = self.nats.get(host)
        if nat is None:
            return address.sockaddr
        if nat.mapped is None or now - nat.used > nat.timeout:
            self.rebind(host)
            nat.ports += 1
            nat.mapped = Endpoint(f"203.0.113.{host}", nat.ports)
            self.addresses[nat.mapped.host, nat.mapped.port] = host
        nat.used = now
        return nat.mapped.sockaddr

    def rebind(self, host: int) -> None:
        """Let the NAT forget its mapping."""
        nat = self.nats[host]
        if nat.mapped is not None:
            self.addresses.pop((nat.mapped.host, nat.mapped.port), None)
            nat.mapped = None

    def receiver(self, destination: SockAddr, now: int) -> int | None:
        """Return the host at this address, or None."""
        host = self.addresses.get((destination[0], destination[1]))
        nat = self.nats.get(-1 if host is None else host)
        return None if nat is not None and now - nat.used > nat.timeout else host

    def copies(self, sender: int, receiver: int, data: bytes, now: int) -> list[tuple[int, bytes]]:
        """Return (arrival time, bytes) of each copy of a datagram that arrives, and of datagrams that it releases."""
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
        copies = [(now + self._latency(), self._spoil(data)) for _ in range(count)]
        return copies + [(copies[-1][0], late) for late in self._released((sender, receiver))]

    def _hold(self, direction: tuple[int, int], data: bytes) -> None:
        passed = self._passed[direction]
        most = self.weather.overtaken
        # One in ten is overtaken by the maximum, because bugs are likely at limits.
        after = passed + (most if self._random.random() < 0.1 else self._random.randrange(1, most + 1))
        heapq.heappush(self._held.setdefault(direction, []), (after, passed, data))

    def _released(self, direction: tuple[int, int]) -> list[bytes]:
        """Count a datagram that passed, and return those that were held for it."""
        self._passed[direction] += 1
        held, released = self._held.get(direction, []), []
        while held and held[0][0] <= self._passed[direction]:
            after, passed, data = heapq.heappop(held)
            self.most_overtaken = max(self.most_overtaken, after - passed)
            released.append(data)
        return released

    def held(self, sender: int, receiver: int) -> list[bytes]:
        """Return the datagrams that wait to be overtaken."""
        return [data for _, _, data in self._held.get((sender, receiver), [])]

    def all_held(self) -> list[bytes]:
        return [data for held in self._held.values() for _, _, data in held]

    def forget_held(self) -> None:
        self._held.clear()

    def _latency(self) -> int:
        weather, random = self.weather, self._random
        latency = weather.delay
        if weather.jitter:
            latency += random.randrange(weather.jitter)
        if weather.late and weather.reordered and random.random() < weather.reordered:
            latency += random.randrange(weather.late)
        return latency

    def _spoil(self, data: bytes) -> bytes:
        weather, random = self.weather, self._random
        if weather.corrupted and random.random() < weather.corrupted:
            at = random.randrange(len(data))
            data = data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
        if weather.truncated and random.random() < weather.truncated:
            data = data[: random.randrange(1, len(data))]
        return data


def draw_weather(random: Random) -> Weather:
    """Draw random weather. Each fault is absent half of the time, so that faults occur alone and combined."""

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
