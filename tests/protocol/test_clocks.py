"""Suspension of the machine, a wall clock that jumps, and shortened timings."""

from __future__ import annotations

import pytest

from tests.support.world import (
    MS,
    MakeWorld,
    connected,
)
from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
)


def test_sessions_age_while_the_machine_is_suspended(make_world: MakeWorld) -> None:
    """After ten minutes of suspension, the first packet starts a handshake immediately."""
    world = make_world()
    a, b = connected(world)
    world.now += 600 * SECOND
    a.send(b, b"awake")
    assert world.wire[-1].kind == MESSAGE_INITIATION
    world.run(SECOND)
    assert b.received[-1] == b"awake"


@pytest.mark.parametrize("jump", [-365, 365])
def test_a_wall_clock_that_jumps_by_a_year_does_no_harm(make_world: MakeWorld, jump: int) -> None:
    """The session continues, and the next handshake succeeds at the first attempt (L7)."""
    world = make_world()
    a, b = connected(world)
    a.wall_offset += jump * 86400 * SECOND
    a.send(b, b"same session")
    world.run(121 * SECOND)
    a.send(b, b"renews")
    world.run(SECOND)
    a.send(b, b"after")
    world.run(SECOND)
    assert b.received[1:] == [b"same session", b"renews", b"after"]
    assert len(world.sent(MESSAGE_INITIATION)) == 2
    assert len(world.sent(MESSAGE_RESPONSE)) == 2


def test_shortened_timings_renew_more_often_without_loss(make_world: MakeWorld) -> None:
    short = Timings(2 * SECOND, 6 * SECOND, 3 * SECOND, SECOND, SECOND)
    world = make_world(timings=short)
    a, b = connected(world)
    for number in range(600):
        a.send(b, b"%d" % number)
        world.run(100 * MS)
    assert 20 <= len(world.sent(MESSAGE_INITIATION)) <= 31
    assert b.received[1:] == [b"%d" % number for number in range(600)]
