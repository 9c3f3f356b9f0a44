"""The steps of a run, which follow from its seed alone.

A run of some of a seed's steps is as repeatable as a run of all of them; the shrinker relies on this. Steps come in
clusters with quiet time between them: most of a tunnel's life is quiet, and bugs show where events coincide. Steps are
drawn when they are needed, because a list for weeks of virtual time would be too long.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from random import Random

from wyrmhole.simulation.clock import SECOND, YEAR
from wyrmhole.simulation.world.network import Weather, draw_weather

HOUR = 3600 * SECOND
CLUSTER = 60 * SECOND
"""The time within which the steps of a cluster lie."""
MAX_HOSTS = 16
Arguments = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The step `what` with these arguments, `at` ns after the start (see World)."""

    at: int
    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Profile:
    """How much happens: clusters per host and hour, steps per cluster, and deluges per run.

    A deluge costs as much work as a storm. If `idle`, only persistent keepalives are sent.
    """

    clusters: float
    steps: int
    deluges: int = 0
    idle: bool = False


PROFILES = {
    "calm": Profile(clusters=0.4, steps=4),
    "storm": Profile(clusters=60.0, steps=8),
    "deluge": Profile(clusters=10.0, steps=4, deluges=1),
    "idle": Profile(clusters=0.0, steps=0, idle=True),
}
DELUGE = 12_000
OVERTAKEN = 10_000
"""The packets of a deluge, and how many of them may overtake one: more than the replay window of 8,128 holds."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world and its steps.

    `nats` maps each host behind a NAT to the timeout of the NAT's mappings in seconds. `drifts` has the clock drift of
    each host in parts per million.
    """

    seed: int
    hosts: int
    duration: int
    drifts: tuple[int, ...]
    nats: dict[int, int]
    steps: Collection[Step]
    """Drawn steps are in the order of their times; chosen ones need not be."""

    def keep(self, numbers: list[int] | None) -> Scenario:
        """Return the same scenario with only these steps; None keeps all."""
        if numbers is None:
            return self
        wanted = set(numbers)
        steps = tuple(step for number, step in enumerate(self.steps) if number in wanted)
        return Scenario(self.seed, self.hosts, self.duration, self.drifts, self.nats, steps)


def draw(seed: int, *, hours: float, hosts: int | None = None, profile: str = "calm") -> Scenario:
    """Return the scenario of a seed. If `hosts` is None, 2 to 16 are drawn."""
    random = Random(f"{seed}/scenario")
    number = random.choice((2, 2, 3, 3, 4, 5, 8, MAX_HOSTS)) if hosts is None else hosts
    drifts = tuple(_draw_drift(random) for _ in range(number))
    # The first two hosts are never behind a NAT, because the liveness trials need two reachable hosts.
    nats = {host: random.randrange(30, 120) for host in range(3, number + 1) if random.random() < 0.3}
    duration = int(hours * HOUR)
    steps: Collection[Step] = DrawnSteps(random, number, duration, PROFILES[profile])
    if PROFILES[profile].idle:
        steps = tuple(_draw_idle(random, host, duration, host in nats) for host in range(2, number + 1))
    return Scenario(seed, number, duration, drifts, nats, steps)


class DrawnSteps(Collection[Step]):
    """The steps that follow from the state of `random`. Each iteration draws them again."""

    def __init__(self, random: Random, hosts: int, duration: int, profile: Profile) -> None:
        self._drawn_from = (random.getstate(), hosts, duration, profile)
        self._deluges: list[Step] = []
        if profile.deluges:
            # Deluges are drawn after all other steps.
            for _ in _draw_steps(random, hosts, duration, profile):
                pass
            self._deluges = [_draw_deluge(random, hosts, duration) for _ in range(profile.deluges)]
            self._deluges.sort(key=lambda step: step.at)

    def __iter__(self) -> Iterator[Step]:
        state, hosts, duration, profile = self._drawn_from
        random = Random()
        random.setstate(state)
        return heapq.merge(_draw_steps(random, hosts, duration, profile), self._deluges, key=lambda step: step.at)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, step: object) -> bool:
        return any(step == each for each in self)


def _draw_drift(random: Random) -> int:
    return random.choice((0, 0, 0, random.randrange(-100, 101), random.randrange(-100, 101), 10_000, -10_000))


def _draw_steps(random: Random, hosts: int, duration: int, profile: Profile) -> Iterator[Step]:
    """Yield steps in the order of their times.

    Clusters overlap, so steps wait in a heap until all earlier ones exist.
    """
    waiting: list[tuple[int, int, Step]] = []
    order = itertools.count()
    mean = HOUR / (profile.clusters * hosts)
    at = random.random() * min(mean, duration / 4)
    while at < duration:
        pair = _pair(random, hosts)
        for _ in range(random.randrange(1, 2 * profile.steps)):
            # Most steps of a cluster concern the same two hosts; otherwise faults would seldom meet traffic.
            concerned = pair if random.random() < 0.8 else _pair(random, hosts)
            when = int(at + random.random() ** 2 * CLUSTER)
            step = Step(min(when, duration - 1), *_draw_step(random, concerned))
            heapq.heappush(waiting, (step.at, next(order), step))
        at += random.expovariate(1 / mean)
        while waiting and waiting[0][0] <= at:
            yield heapq.heappop(waiting)[2]
    yield from (step for _, _, step in sorted(waiting))


def _draw_deluge(random: Random, hosts: int, duration: int) -> Step:
    """Draw sender, receiver, count, spacing in ns, and weather."""
    weather = Weather(reordered=random.choice((0.001, 0.01, 0.1)), overtaken=OVERTAKEN)
    spacing = random.choice((1_000, 10_000, 100_000))
    return Step(random.randrange(duration), "deluge", (*_pair(random, hosts), DELUGE, spacing, weather))


def _draw_idle(random: Random, host: int, duration: int, has_nat: bool) -> Step:
    """Draw a step in which a host and host 1 keep their session alive; see `Administrator.idle`."""
    return Step(SECOND, "idle", (host, 1, *draw_idle(random, has_nat), duration - SECOND))


def draw_idle(random: Random, has_nat: bool) -> tuple[int, int]:
    """Draw the persistent keepalive intervals of the initiator and of the other side; one of them may be 0.

    An initiator behind a NAT always has an interval, because it must keep its mapping alive.
    """
    interval = random.choice((1, 5, 10, 15, 25, 25, 25, 40, 60))
    intervals = ((interval, 0), (interval, 2 * interval + 1), (0, interval), (interval, interval))
    return random.choice(intervals[:2] if has_nat else intervals)


def _pair(random: Random, hosts: int) -> tuple[int, int]:
    a = random.randrange(1, hosts + 1)
    b = random.randrange(1, hosts)
    return a, b + (b >= a)


def _draw_step(random: Random, pair: tuple[int, int]) -> tuple[str, Arguments]:
    name = random.choices(_NAMES, _WEIGHTS)[0]
    return name, _DRAWN[name][1](random, pair)


def _duration(random: Random, most: int) -> int:
    """Draw a duration in ns of 1 to `most` seconds, uniformly on a logarithmic scale."""
    return int(SECOND * most ** random.random())


def _talk(random: Random, pair: tuple[int, int]) -> Arguments:
    """Draw sender, receiver, count, spacing in ns, size, whether IPv6, and whether answered."""
    count = random.choice((1, 1, 2, 5, 20, 20))
    spacing = int(10 ** random.uniform(5, 10.5))
    return (*pair, count, spacing, random.choice((48, 48, 200, 1420)), random.random() < 0.3, random.random() < 0.5)


def _burst(random: Random, pair: tuple[int, int]) -> Arguments:
    count = int(10 ** random.uniform(1.5, 2.8))
    return (*pair, count, random.choice((0, 1000, 100_000)), 48, False, False)


def _weather(random: Random, pair: tuple[int, int]) -> tuple[Weather, int]:
    return draw_weather(random), _duration(random, 300)


def _hole(random: Random, pair: tuple[int, int]) -> Arguments:
    return (*pair, _duration(random, 300), random.choice((60, 100, 200, 1280)))


def _suspend(random: Random, pair: tuple[int, int]) -> Arguments:
    return pair[0], _duration(random, 24 * 3600)


def _one_and_gap(most: int) -> Callable[[Random, tuple[int, int]], Arguments]:
    """Return a function that draws one host and a duration of up to `most` seconds."""
    return lambda random, pair: (pair[0], _duration(random, most))


def _two_and_gap(most: int) -> Callable[[Random, tuple[int, int]], Arguments]:
    """Return a function that draws two hosts and a duration of up to `most` seconds."""
    return lambda random, pair: (*pair, _duration(random, most))


def _one(random: Random, pair: tuple[int, int]) -> Arguments:
    return (pair[0],)


def _one_and_count(most: int) -> Callable[[Random, tuple[int, int]], Arguments]:
    return lambda random, pair: (pair[0], random.randrange(1, most))


def _wall(random: Random, pair: tuple[int, int]) -> Arguments:
    return pair[0], int(random.uniform(-10, 10) * YEAR)


def _flood(random: Random, pair: tuple[int, int]) -> Arguments:
    return pair[0], random.choice((50, 150, 300)), random.choice((1, 4, 24))


def _keepalive(random: Random, pair: tuple[int, int]) -> Arguments:
    return (*pair, random.choice((0, 0, 1, 10, 25)), _duration(random, 120))


Drawn = Callable[[Random, tuple[int, int]], Arguments]
_DRAWN: dict[str, tuple[int, Drawn]] = {
    "talk": (30, _talk),
    "burst": (3, _burst),
    "weather": (8, _weather),
    "cut": (5, _two_and_gap(300)),
    "hole": (2, _hole),
    "roam": (3, _one),
    "suspend": (2, _suspend),
    "wall": (2, _wall),
    "crash": (4, _one_and_gap(60)),
    "toggle": (2, _one_and_gap(20)),
    "busy": (2, _one_and_gap(3)),
    "fail_sends": (2, _one_and_count(30)),
    "fail_writes": (2, _one_and_count(30)),
    "stale_sources": (1, _one),
    "change_psk": (2, _two_and_gap(60)),
    "change_key": (1, _one_and_gap(60)),
    "change_keepalive": (2, _keepalive),
    "change_routes": (3, _one),
    "readd": (2, _two_and_gap(30)),
    "spoof_inside": (2, lambda random, pair: pair),
    "replay": (5, _one_and_count(20)),
    "reflect": (2, _one_and_count(10)),
    "garbage": (2, _one_and_count(30)),
    "forge": (4, _one_and_count(20)),
    "flood": (1, _flood),
}
"""The weight of each step, and the function that draws its arguments."""
_NAMES = list(_DRAWN)
_WEIGHTS = [weight for weight, _ in _DRAWN.values()]
