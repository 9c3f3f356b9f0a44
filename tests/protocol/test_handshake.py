"""Handshakes: the order of messages, preshared keys, and crossed or replayed messages."""

from __future__ import annotations

from tests.support.world import (
    KEEPALIVE_SIZE,
    MS,
    Flight,
    MakeWorld,
    connected,
    gaps,
    lose,
)
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.events import HandshakeCompleted, HandshakeRefused
from wyrmhole.protocol.keys import PresharedKey
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
    MESSAGE_TRANSPORT,
)


def test_the_first_packet_starts_a_handshake_and_arrives(make_world: MakeWorld) -> None:
    """The staged packet itself confirms the key, so no keepalive is needed (M19)."""
    world = make_world()
    connected(world)
    assert [flight.kind for flight in world.wire] == [MESSAGE_INITIATION, MESSAGE_RESPONSE, MESSAGE_TRANSPORT]


def test_an_initiator_without_data_sends_a_keepalive(make_world: MakeWorld) -> None:
    """The keepalive arrives within one round trip of message 2, and confirms the key (M19)."""
    world = make_world()
    a, b = world.pair()
    a.plane.send_keepalive(a.peer_of(b).id)
    a.settle()
    world.run(SECOND)
    transport = world.sent(MESSAGE_TRANSPORT)
    assert [len(flight.data) for flight in transport] == [KEEPALIVE_SIZE]
    assert transport[0].at == world.sent(MESSAGE_RESPONSE)[0].at + world.delay


def test_the_responder_waits_for_confirmation_of_the_key(make_world: MakeWorld) -> None:
    """The responder's packets are staged until the initiator's first transport data message (M18, I8)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose(MESSAGE_TRANSPORT, sender="a"))
    a.send(b)
    world.run(20 * MS)
    b.send(a, b"too early")
    world.run(2 * SECOND)
    assert world.sent(MESSAGE_TRANSPORT, "b") == []
    world.filters.clear()
    a.send(b)
    world.run(20 * MS)
    assert a.received == [b"too early"]


def test_staged_packets_leave_in_order_without_the_oldest(make_world: MakeWorld) -> None:
    """At most 128 packets are staged; each is sent, or counted under a drop reason (M49, L9)."""
    world = make_world()
    a, b = world.pair()
    for number in range(130):
        a.send(b, b"%d" % number)
    world.run(SECOND)
    assert b.received == [b"%d" % number for number in range(2, 130)]
    assert a.plane.dropped["staging_full"] == 2


def test_a_preshared_key_on_both_sides_works(make_world: MakeWorld) -> None:
    """It is mixed into message 2 (M17)."""
    world = make_world()
    a, b = world.pair(psk=PresharedKey(b"p" * 32))
    a.send(b)
    world.run(SECOND)
    assert b.received == [b"data"]


def test_a_preshared_key_on_one_side_prevents_the_handshake(make_world: MakeWorld) -> None:
    """An all-zero preshared key, however, is the same as no preshared key (M17)."""
    world = make_world()
    a, b = world.pair()
    a.interface.set_preshared_key(a.peer_of(b), PresharedKey(b"p" * 32))
    a.send(b)
    world.run(200 * SECOND)
    assert b.received == []
    assert not any(isinstance(event, HandshakeCompleted) for event in a.events + b.events)
    a.interface.set_preshared_key(a.peer_of(b), PresharedKey(bytes(32)))
    a.send(b, b"zeros mean no key")
    world.run(10 * SECOND)
    assert b.received == [b"zeros mean no key"]


def test_a_new_preshared_key_applies_to_the_next_handshake(make_world: MakeWorld) -> None:
    """The live session continues (I26)."""
    world = make_world()
    a, b = connected(world)
    for node, other in ((a, b), (b, a)):
        node.interface.set_preshared_key(node.peer_of(other), PresharedKey(b"q" * 32))
    a.send(b, b"old session")
    world.run(SECOND)
    assert b.received[-1] == b"old session"
    world.run(120 * SECOND)
    a.send(b, b"renews")
    world.run(SECOND)
    a.send(b, b"new session")
    world.run(SECOND)
    assert b.received[-2:] == [b"renews", b"new session"]
    assert len(world.sent(MESSAGE_RESPONSE)) == 2


def test_simultaneous_initiations_complete_in_one_round_trip(make_world: MakeWorld) -> None:
    """Data then flows in both directions (L3)."""
    world = make_world()
    a, b = world.pair()
    a.send(b, b"from a")
    b.send(a, b"from b")
    world.run(50 * MS)
    assert (a.received, b.received) == ([b"from b"], [b"from a"])


def test_crossed_handshakes_do_not_cross_at_later_renewals(make_world: MakeWorld) -> None:
    """Afterwards there is at most one initiation in 120 s (L3)."""
    world = make_world()
    a, b = world.pair()
    a.send(b)
    b.send(a)
    world.run(SECOND)
    start = world.now
    for _ in range(1000):
        a.send(b)
        b.send(a)
        world.run(SECOND)
    assert min(gaps(world.sent(MESSAGE_INITIATION, since=start))) >= 119 * SECOND
    assert len(a.received) == len(b.received) == 1001


def test_a_second_response_to_one_initiation_has_no_effect(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    response = world.sent(MESSAGE_RESPONSE)[0]
    events = list(a.events)
    world.carry(response, MS)
    world.run(SECOND)
    refused = HandshakeRefused(DropReason.UNEXPECTED_RESPONSE, b.endpoint)
    assert [event for event in a.events if event != refused] == events, "an engine drops it without a report"
    a.send(b, b"still")
    world.run(SECOND)
    assert b.received[-1] == b"still"


def test_a_replayed_initiation_is_ignored(make_world: MakeWorld) -> None:
    """Without a later timestamp, an initiation gets no answer and does not move the endpoint (M13, I11)."""
    world = make_world()
    a, b = connected(world)
    initiation = world.sent(MESSAGE_INITIATION)[0]
    stranger = world.node("stranger")
    world.carry(Flight(world.now, "eve", stranger.endpoint, b.endpoint, initiation.data), MS)
    count = len(world.wire)
    world.run(SECOND)
    assert len(world.wire) == count
    assert b.peer_of(a).endpoint == a.endpoint


def test_reflected_messages_are_dropped(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    before = len(world.wire)
    for flight in list(world.wire):
        world.carry(Flight(world.now, "eve", flight.destination, flight.source, flight.data), MS)
    world.run(SECOND)
    assert len(world.wire) == before
    assert a.received == []
    assert b.received == [b"hello"]


def test_a_corrupt_timestamp_does_not_block_the_genuine_one(make_world: MakeWorld) -> None:
    """A timestamp is recorded only after its tag has been verified (M14)."""
    world = make_world()
    a, b = world.pair()

    def precede_by_corrupt_copy(flight: Flight) -> list[Flight]:
        if flight.kind != MESSAGE_INITIATION:
            return [flight]
        broken = bytearray(flight.data)
        broken[100] ^= 1
        from wyrmhole.protocol.cookie import mac1_key
        from wyrmhole.protocol.primitives import mac

        broken[116:132] = mac(mac1_key(b.key.public_key()), bytes(broken[:116]))
        world.carry(Flight(flight.at, "eve", flight.source, flight.destination, bytes(broken)), MS)
        return [flight]

    world.filters.append(precede_by_corrupt_copy)
    a.send(b)
    world.run(SECOND)
    assert b.received == [b"data"]


def test_initiations_of_one_peer_are_rate_limited(make_world: MakeWorld) -> None:
    """A peer that restarts every 10 ms gets a response every 20 ms at most (M15)."""
    world = make_world(delay=MS)
    b = world.node("b")
    for number in range(20):
        again = world.node(f"a{number}", host="192.0.2.77")
        again.key = world.nodes["a0"].key
        again.interface.set_private_key(again.key, world.now)
        if number == 0:
            b.know(again)
        again.know(b)
        again.send(b)
        world.run(10 * MS)
        again.endpoint = type(again.endpoint)("192.0.2.78", number + 1)
    assert 5 <= len(world.sent(MESSAGE_RESPONSE)) <= 11
