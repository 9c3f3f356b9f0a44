"""Faults that the simulator found, one scenario each, on the model data plane and on the portable engine."""

from __future__ import annotations

import itertools

import pytest

from tests.support.world import MakeWorld, lose
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.messages import MESSAGE_INITIATION, MESSAGE_RESPONSE, MESSAGE_TRANSPORT


def test_incoming_initiations_do_not_prolong_hopeless_attempts(make_world: MakeWorld) -> None:
    """Each incoming initiation postponed the retransmission, and the postponement reset the count of attempts. All
    datagrams of a are lost, those of b arrive, and b sends data continuously (L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose(sender="a"))
    a.send(b)
    for _ in range(120):
        b.send(a)
        world.run(SECOND)
    assert a.plane.dropped["gave_up"] == 1


def test_two_keepalives_due_together_are_sent_as_one(make_world: MakeWorld) -> None:
    """The passive keepalive is sent, which postpones the persistent one (I20, I21)."""
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


def test_staged_packets_survive_a_change_of_the_private_key(make_world: MakeWorld) -> None:
    """The change ended the series of attempts, and only another packet started the next one (L9)."""
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


def test_without_a_private_key_staged_packets_are_dropped(make_world: MakeWorld) -> None:
    """The private key is removed, so no handshake can deliver them (L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose(MESSAGE_INITIATION, MESSAGE_RESPONSE))
    a.send(b)
    a.interface.set_private_key(None, world.now)
    world.run(SECOND)
    assert a.plane.dropped["gave_up"] == 1


@pytest.mark.parametrize("spacing", [1, 7, 30])
def test_crossed_handshakes_do_not_cross_again_at_any_spacing(make_world: MakeWorld, spacing: int) -> None:
    """Both sides sent packets simultaneously, over 5 s apart, and the handshakes crossed at each renewal (L3)."""
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
