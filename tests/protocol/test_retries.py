"""Unanswered handshakes: the pace of retries, and giving up."""

from __future__ import annotations

import pytest

from tests.support.world import (
    MS,
    TICK,
    Flight,
    MakeWorld,
    gaps,
    lose,
)
from wyrmhole.protocol.constants import REKEY_TIMEOUT_JITTER, SECOND
from wyrmhole.protocol.events import HandshakeGaveUp
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
)


@pytest.mark.parametrize("lost", [MESSAGE_INITIATION, MESSAGE_RESPONSE])
def test_a_lost_handshake_message_is_retried_after_rekey_timeout(make_world: MakeWorld, lost: int) -> None:
    """An unanswered initiation is followed by another after 5 s and jitter (M30, M31, L1)."""
    world = make_world()
    a, b = world.pair()
    losses = [lost]

    def lose_first(flight: Flight) -> list[Flight]:
        if flight.kind in losses:
            losses.remove(flight.kind)
            return []
        return [flight]

    world.filters.append(lose_first)
    a.send(b)
    world.run(5 * SECOND + REKEY_TIMEOUT_JITTER + TICK + 50 * MS)
    assert b.received == [b"data"]
    assert len(world.sent(MESSAGE_INITIATION)) == 2


def test_every_attempt_has_a_fresh_ephemeral_key_and_index(make_world: MakeWorld) -> None:
    """No field of two initiations is equal, and the timestamps increase (M9, M10, I10)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(100 * SECOND)
    initiations = [flight.data for flight in world.sent(MESSAGE_INITIATION)]
    assert len({data[4:8] for data in initiations}) == len(initiations) == 20
    assert len({data[8:40] for data in initiations}) == 20


def test_there_is_at_most_one_initiation_in_five_seconds(make_world: MakeWorld) -> None:
    """Packets keep arriving, requests are renewed, and there is no answer (M30, I7)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    for _ in range(600):
        a.send(b)
        a.interface.set_preshared_key(a.peer_of(b), None)
        a.plane.send_keepalive(a.peer_of(b).id)
        a.settle()
        world.run(500 * MS)
    assert min(gaps(world.sent(MESSAGE_INITIATION))) >= 5 * SECOND


def test_retries_have_jitter(make_world: MakeWorld) -> None:
    """Up to 333 ms is added to each wait (M31)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(120 * SECOND)
    between = gaps(world.sent(MESSAGE_INITIATION))
    assert all(5 * SECOND <= gap <= 5 * SECOND + REKEY_TIMEOUT_JITTER + TICK for gap in between)
    assert len(set(between)) > 5


def test_it_gives_up_after_20_initiations_until_the_next_packet(make_world: MakeWorld) -> None:
    """The last one leaves 90 to 102 s after the first; staged packets are dropped and counted (M32, L5, L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(300 * SECOND)
    initiations = world.sent(MESSAGE_INITIATION)
    assert len(initiations) == 20
    assert 90 * SECOND <= initiations[-1].at - initiations[0].at <= 102 * SECOND
    assert [event for event in a.events if isinstance(event, HandshakeGaveUp)] == [
        HandshakeGaveUp(b.key.public_key(), attempts=20)
    ]
    assert a.plane.dropped["gave_up"] == 1
    world.filters.clear()
    a.send(b, b"again")
    assert len(world.sent(MESSAGE_INITIATION)) == 21
    world.run(SECOND)
    assert b.received == [b"again"]


def test_ongoing_traffic_does_not_prolong_hopeless_attempts(make_world: MakeWorld) -> None:
    """Only the number and duration of attempts decide when to give up (M32, L9)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    for _ in range(100):
        a.send(b)
        world.run(SECOND)
    world.run(10 * SECOND)
    assert any(isinstance(event, HandshakeGaveUp) for event in a.events)
