"""What the simulator found, each as a scenario of its own, on the model data plane and on the portable engine."""

from __future__ import annotations

import itertools

import pytest

from tests.support.world import MakeWorld, lose
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.messages import MESSAGE_INITIATION, MESSAGE_RESPONSE, MESSAGE_TRANSPORT


def test_a_hopeless_series_ends_although_initiations_of_the_other_side_arrive(make_world: MakeWorld) -> None:
    """Each of them put the retransmission off, and what was put off began to count anew. Nothing of a arrives,
    everything of b does, and b always has something to say (L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose(sender="a"))
    a.send(b)
    for _ in range(120):
        b.send(a)
        world.run(SECOND)
    assert a.plane.dropped["gave_up"] == 1


def test_two_keepalives_that_are_due_together_are_one(make_world: MakeWorld) -> None:
    """The passive one is sent, which puts the persistent one off (I20, I21)."""
    world = make_world()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    b.interface.set_persistent_keepalive(b.peer_of(a), 10, world.now)
    world.run(20 * SECOND)
    a.send(b)
    start = world.now
    world.run(15 * SECOND)
    assert len(world.sent(MESSAGE_TRANSPORT, "b", since=start)) == 1


def test_packets_that_wait_while_the_private_key_changes_leave_under_the_new_one(make_world: MakeWorld) -> None:
    """The series of attempts ended with the key, and nothing but another packet began the next (L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b, b"waiting")
    world.run(SECOND)
    a.key = PrivateKey(b"\x11" * 32)
    b.know(a)
    a.interface.set_private_key(a.key, world.now)
    world.filters.clear()
    world.run(6 * SECOND)
    assert b.received == [b"waiting"]


def test_packets_that_wait_are_dropped_by_name_when_there_can_be_no_handshake(make_world: MakeWorld) -> None:
    """The private key is taken away (L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose(MESSAGE_INITIATION, MESSAGE_RESPONSE))
    a.send(b)
    a.interface.set_private_key(None, world.now)
    world.run(SECOND)
    assert a.plane.dropped["gave_up"] == 1


@pytest.mark.parametrize("spacing", [1, 7, 30])
def test_crossed_handshakes_do_not_cross_again_whatever_the_spacing_of_packets(
    make_world: MakeWorld, spacing: int
) -> None:
    """Packets that left both sides at the same moment, more than 5 s apart, made them cross at each renewal (L3)."""
    world = make_world()
    a, b = world.pair()
    for _ in range(1000 // spacing):
        a.send(b)
        b.send(a)
        world.run(spacing * SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=1001 * SECOND)
    assert all(later.at - earlier.at >= 100 * SECOND for earlier, later in itertools.pairwise(renewals))
    assert len(renewals) >= 5
    assert len(a.received) == len(b.received) == 1000 // spacing
