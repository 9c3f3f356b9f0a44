"""Events about a peer that does not connect, falls silent, comes back or flaps between endpoints."""

from __future__ import annotations

import itertools

import pytest

from tests.support.world import MS, Node, World, lose
from wyrmhole.protocol import events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.data_plane import Refused
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PresharedKey
from wyrmhole.protocol.roaming import QUIET_AFTER, Roaming
from wyrmhole.wire.endpoint import Endpoint

HOME, CAFE = Endpoint("192.0.2.10", 1), Endpoint("192.0.2.20", 1)


def of(node: Node, kind: type[events.Event]) -> list[events.Event]:
    return [event for event in node.events if isinstance(event, kind)]


def unanswered(seconds: int = 16) -> tuple[World, Node, Node]:
    """Let `a` send a packet to `b`, and lose everything that `b` sends."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose(sender="b"))
    a.send(b)
    world.run(seconds * SECOND)
    return world, a, b


def test_each_initiation_is_reported_with_its_number() -> None:
    _, a, b = unanswered()
    sent = of(a, events.InitiationSent)
    assert sent == [events.InitiationSent(b.key.public_key(), b.endpoint, attempt) for attempt in (1, 2, 3, 4)]


def test_a_silent_peer_is_reported_once_after_15_seconds() -> None:
    world, a, b = unanswered(14)
    assert not of(a, events.PeerSilent)
    world.run(100 * SECOND)
    assert of(a, events.PeerSilent) == [events.PeerSilent(b.key.public_key(), b.endpoint, 3)]


def test_a_silent_peer_that_answers_again_is_reported() -> None:
    world, a, b = unanswered(40)
    world.filters.clear()
    world.run(10 * SECOND)
    (back,) = of(a, events.PeerBack)
    assert isinstance(back, events.PeerBack) and back.peer == b.key.public_key()
    assert 20 * SECOND < back.silent_for < 30 * SECOND


def test_a_peer_that_was_never_silent_is_not_reported() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    assert of(a, events.HandshakeCompleted) and not of(a, events.PeerBack)


def test_unanswered_data_in_a_session_counts_as_silence() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    world.filters.append(lose(sender="b"))
    a.send(b)
    world.run(16 * SECOND)
    assert of(a, events.PeerSilent) == [events.PeerSilent(b.key.public_key(), b.endpoint, 0)]


def test_an_idle_peer_is_not_silent() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(1000 * SECOND)
    assert not of(a, events.PeerSilent)


def test_down_ends_a_silence_without_an_event() -> None:
    world, a, b = unanswered(20)
    a.interface.down()
    a.interface.up(world.now)
    world.filters.clear()
    a.send(b)
    world.run(10 * SECOND)
    assert of(a, events.HandshakeCompleted) and not of(a, events.PeerBack)


def test_an_unknown_key_is_reported_with_its_source() -> None:
    world = World()
    a, b = world.node("a"), world.node("b")
    a.know(b)
    a.send(b)
    world.run(SECOND)
    refused = events.HandshakeRefused(DropReason.UNKNOWN_PEER, a.endpoint, a.key.public_key())
    assert of(b, events.HandshakeRefused) == [refused]


def test_a_preshared_key_on_one_side_is_reported_there() -> None:
    world = World()
    a, b = world.node("a"), world.node("b")
    a.know(b, psk=PresharedKey(bytes(range(32))))
    b.know(a)
    a.send(b)
    world.run(SECOND)
    refused = events.HandshakeRefused(DropReason.BAD_HANDSHAKE, b.endpoint, b.key.public_key())
    assert of(a, events.HandshakeRefused) == [refused]


def test_a_silence_is_reported_with_the_refusal_that_caused_it() -> None:
    world = World()
    a, b = world.node("a"), world.node("b")
    a.know(b, psk=PresharedKey(bytes(range(32))))
    b.know(a)
    a.send(b)
    world.run(16 * SECOND)
    (silent,) = of(a, events.PeerSilent)
    assert silent == events.PeerSilent(b.key.public_key(), b.endpoint, 3, DropReason.BAD_HANDSHAKE)
    a.interface.set_preshared_key(a.peer_of(b), None)
    world.run(10 * SECOND)
    assert of(a, events.PeerBack) and a.peer_of(b).problem is None


def test_a_replayed_initiation_names_its_peer() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    world.carry(world.sent(1)[0], MS)
    world.run(SECOND)
    refused = events.HandshakeRefused(DropReason.REPLAYED_HANDSHAKE, a.endpoint, a.key.public_key())
    assert of(b, events.HandshakeRefused) == [refused]


def test_refusals_of_a_known_peer_are_counted_for_it() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    for _ in range(2):
        world.carry(world.sent(1)[0], MS)
        world.run(SECOND)
    assert b.peer_of(a).drops == {DropReason.REPLAYED_HANDSHAKE: 2}
    assert a.peer_of(b).drops is None


def test_refusals_by_the_data_plane_become_events() -> None:
    world = World()
    a, b = world.pair()
    b.interface.handle_report(Refused(DropReason.BAD_MAC1, a.endpoint), world.now)
    b.interface.handle_report(Refused(DropReason.BAD_SOURCE, a.endpoint, 999, bytes(4)), world.now)
    b.interface.handle_report(Refused(DropReason.BAD_SOURCE, a.endpoint, b.peer_of(a).id, bytes(16)), world.now)
    b.settle()
    assert b.events == [
        events.HandshakeRefused(DropReason.BAD_MAC1, a.endpoint),
        events.PacketRefused(a.key.public_key(), a.endpoint, "::"),
    ]


def test_an_impossible_handshake_is_reported_with_its_cause() -> None:
    world = World()
    a, b = world.pair()
    a.interface.set_private_key(None, world.now)
    a.send(b)
    world.run(SECOND)
    impossible = events.HandshakeImpossible(b.key.public_key(), "the interface has no private key")
    assert impossible in a.events


def test_both_sides_report_the_steps_of_a_handshake() -> None:
    world = World()
    a, b = world.pair()
    a.send(b)
    world.run(SECOND)
    assert [type(event) for event in a.events] == [events.InitiationSent, events.HandshakeCompleted]
    kinds = [type(event) for event in b.events]
    assert kinds[:2] == [events.ResponseSent, events.HandshakeCompleted]


@pytest.mark.parametrize(
    ("moves", "reported"),
    [
        ("HCHCHC", True),
        ("HCHC", False),
        ("HC", False),
    ],
)
def test_three_returns_are_flapping(moves: str, reported: bool) -> None:
    places, roaming = {"H": HOME, "C": CAFE}, Roaming()
    steps = itertools.pairwise(moves)
    results = [roaming.move(places[old], places[new], at * SECOND) for at, (old, new) in enumerate(steps)]
    assert any(results) is reported


def test_new_ports_from_a_nat_are_not_flapping() -> None:
    roaming = Roaming()
    ports = [Endpoint("192.0.2.1", port) for port in range(1, 50)]
    assert not any(roaming.move(old, new, 0) for old, new in itertools.pairwise(ports))


def test_slow_returns_are_not_flapping() -> None:
    roaming = Roaming()
    places = [HOME, CAFE] * 20
    moves = enumerate(itertools.pairwise(places))
    assert not any(roaming.move(old, new, at * 100 * SECOND) for at, (old, new) in moves)


def test_flapping_is_reported_again_only_after_ten_minutes() -> None:
    roaming, places = Roaming(), [HOME, CAFE] * 500
    moves = enumerate(itertools.pairwise(places))
    times = [at * SECOND for at, (old, new) in moves if roaming.move(old, new, at * SECOND)]
    assert len(times) == 2 and times[1] - times[0] == QUIET_AFTER
