"""What happens in a run, drawn from its seed before anything runs: a list of steps.

A list can be cut: a run of some of a seed's steps is as repeatable as one of all, which is what the shrinker works
with. Steps come in clusters with quiet time between them, because most of a tunnel's life is quiet, and its bugs are
where things happen together. They are drawn as they are needed, so that a run of weeks has no list of weeks.
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
"""Steps of a cluster lie within this time."""
MAX_HOSTS = 16
Arguments = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """At `at` ns of the world, the step `what` with these arguments (see World)."""

    at: int
    what: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Profile:
    """How much happens: clusters per host and hour, and steps in each; and how many deluges in a run, each of them
    as much work as a storm. `idle`: nothing happens but persistent keepalives."""

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
"""Packets that a deluge has, and that may overtake one of them: more than a replay window of 8,128 holds."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world and its steps. `nats` are the hosts behind one, with the timeout of its mappings in seconds; `drifts`
    are parts per million, one for each host."""

    seed: int
    hosts: int
    duration: int
    drifts: tuple[int, ...]
    nats: dict[int, int]
    steps: Collection[Step]
    """Those that are drawn are in the order of their times; a few chosen ones need not be."""

    def keep(self, numbers: list[int] | None) -> Scenario:
        """The same with some of its steps only; None: all."""
        if numbers is None:
            return self
        wanted = set(numbers)
        steps = tuple(step for number, step in enumerate(self.steps) if number in wanted)
        return Scenario(self.seed, self.hosts, self.duration, self.drifts, self.nats, steps)


def draw(seed: int, *, hours: float, hosts: int | None = None, profile: str = "calm") -> Scenario:
    """The scenario of a seed; `hosts` None draws 2 to 16."""
    random = Random(f"{seed}/scenario")
    number = random.choice((2, 2, 3, 3, 4, 5, 8, MAX_HOSTS)) if hosts is None else hosts
    drifts = tuple(_draw_drift(random) for _ in range(number))
    # The first two hosts have addresses of their own, so that the liveness trials have somebody to work on.
    nats = {host: random.randrange(30, 120) for host in range(3, number + 1) if random.random() < 0.3}
    duration = int(hours * HOUR)
    steps: Collection[Step] = DrawnSteps(random, number, duration, PROFILES[profile])
    if PROFILES[profile].idle:
        steps = tuple(_draw_idle(random, host, duration, host in nats) for host in range(2, number + 1))
    return Scenario(seed, number, duration, drifts, nats, steps)


class DrawnSteps(Collection[Step]):
    """The steps that follow from the state of `random`. They are drawn anew whenever somebody goes through them."""

    def __init__(self, random: Random, hosts: int, duration: int, profile: Profile) -> None:
        self._drawn_from = (random.getstate(), hosts, duration, profile)
        self._deluges: list[Step] = []
        if profile.deluges:
            # They are drawn after all others.
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
    """In the order of their times. Those that wait to be given belong to clusters that overlap."""
    waiting: list[tuple[int, int, Step]] = []
    order = itertools.count()
    mean = HOUR / (profile.clusters * hosts)
    at = random.random() * min(mean, duration / 4)
    while at < duration:
        pair = _pair(random, hosts)
        for _ in range(random.randrange(1, 2 * profile.steps)):
            # Most steps of a cluster are about two hosts, or faults and traffic would seldom meet.
            about = pair if random.random() < 0.8 else _pair(random, hosts)
            when = int(at + random.random() ** 2 * CLUSTER)
            step = Step(min(when, duration - 1), *_draw_step(random, about))
            heapq.heappush(waiting, (step.at, next(order), step))
        at += random.expovariate(1 / mean)
        while waiting and waiting[0][0] <= at:
            yield heapq.heappop(waiting)[2]
    yield from (step for _, _, step in sorted(waiting))


def _draw_deluge(random: Random, hosts: int, duration: int) -> Step:
    """from, to, how many, ns between two, and the weather meanwhile."""
    weather = Weather(reordered=random.choice((0.001, 0.01, 0.1)), overtaken=OVERTAKEN)
    spacing = random.choice((1_000, 10_000, 100_000))
    return Step(random.randrange(duration), "deluge", (*_pair(random, hosts), DELUGE, spacing, weather))


def _draw_idle(random: Random, host: int, duration: int, has_nat: bool) -> Step:
    """A host and the first one keep their session alive; see `Administrator.idle`."""
    return Step(SECOND, "idle", (host, 1, *draw_idle(random, has_nat), duration - SECOND))


def draw_idle(random: Random, has_nat: bool) -> tuple[int, int]:
    """The intervals of two sides, 0 for none: on the initiator's side, on the other, or on both. A side behind a NAT
    keeps its mapping alive itself."""
    interval = random.choice((1, 5, 10, 15, 25, 25, 25, 40, 60))
    ways = ((interval, 0), (interval, 2 * interval + 1), (0, interval), (interval, interval))
    return random.choice(ways[:2] if has_nat else ways)


def _pair(random: Random, hosts: int) -> tuple[int, int]:
    a = random.randrange(1, hosts + 1)
    b = random.randrange(1, hosts)
    return a, b + (b >= a)


def _draw_step(random: Random, pair: tuple[int, int]) -> tuple[str, Arguments]:
    what = random.choices(_NAMES, _WEIGHTS)[0]
    return what, _DRAWN[what][1](random, pair)


def _duration(random: Random, most: int) -> int:
    """Seconds up to `most`, short ones as likely as long ones."""
    return int(SECOND * most ** random.random())


def _talk(random: Random, pair: tuple[int, int]) -> Arguments:
    """from, to, how many, ns between two, bytes, IPv6, answered."""
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
    """One host and a time."""
    return lambda random, pair: (pair[0], _duration(random, most))


def _two_and_gap(most: int) -> Callable[[Random, tuple[int, int]], Arguments]:
    """Two hosts and a time."""
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
"""Each step's weight, and how its arguments are drawn."""
_NAMES = list(_DRAWN)
_WEIGHTS = [weight for weight, _ in _DRAWN.values()]
