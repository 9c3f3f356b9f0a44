"""Long exchanges over networks that reorder, lose and duplicate datagrams."""

from __future__ import annotations

import pytest

from tests.support.world import (
    MS,
    Flight,
    MakeWorld,
    connected,
)
from wyrmhole.protocol.constants import SECOND, Timings


def test_reordering_alone_loses_no_data(make_world: MakeWorld) -> None:
    """Sessions are renewed every few seconds, and datagrams are delayed by up to 0.3 s (M36, L4)."""
    short = Timings(4 * SECOND, 12 * SECOND, 3 * SECOND, SECOND, 2 * SECOND)
    world = make_world(timings=short, seed=7)
    a, b = connected(world)

    def shuffle(flight: Flight) -> list[Flight]:
        world.carry(flight, world.random.randrange(300 * MS))
        return []

    world.filters.append(shuffle)
    for number in range(2000):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(20 * MS)
    world.run(SECOND)
    assert sorted(b.received[1:]) == sorted(b"%d" % number for number in range(2000))
    assert sorted(a.received) == sorted(b"%d" % number for number in range(2000))


@pytest.mark.parametrize("seed", range(20))
def test_data_flows_again_after_heavy_loss_and_duplication(make_world: MakeWorld, seed: int) -> None:
    """No packet arrives twice, and data flows within 15.4 s after the faults end (I1, I3, L1)."""
    world = make_world(seed=seed)
    a, b = world.pair()

    def terrible(flight: Flight) -> list[Flight]:
        chance = world.random.random()
        if chance < 0.2:
            world.carry(flight, world.random.randrange(2 * SECOND))
        return [] if chance < 0.33 else [flight, flight] if chance < 0.5 else [flight]

    world.filters.append(terrible)
    for number in range(300):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(SECOND)
    world.filters.clear()
    world.run(2 * SECOND)
    a.send(b, b"healed")
    b.send(a, b"healed")
    world.run(15_400 * MS)
    for node in (a, b):
        assert len(set(node.received)) == len(node.received)
        assert node.received[-1] == b"healed"
