"""Renewal of sessions: keepalives count like data (M27, M28), and reports are checked.

Every scenario runs on the model data plane and on every engine.
"""

from __future__ import annotations

import itertools

import pytest

from tests.support.world import MS, Flight, MakeWorld, Node, World, lose
from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.data_plane import KeyConfirmed, KeypairsDropped, KeyWanted
from wyrmhole.protocol.events import HandshakeCompleted
from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.protocol.timer_wheel import TICK_SHIFT
from wyrmhole.wire.messages import MESSAGE_INITIATION, MESSAGE_TRANSPORT

TRY = 5 * SECOND + 333 * MS + 2 * (1 << TICK_SHIFT)
"""The longest time between two attempts, including the ticks of the timer wheel."""


def connected(world: World) -> tuple[Node, Node]:
    """Connect a to b, with a as the initiator."""
    a, b = world.pair()
    a.send(b, b"hello")
    world.run(SECOND)
    return a, b


def crossed(world: World) -> tuple[Node, Node]:
    """Let both initiate simultaneously. Return first the node that yields: it leaves renewal to the second."""
    a, b = world.pair()
    a.send(b)
    b.send(a)
    world.run(SECOND)
    return (a, b) if a.key.public_key().raw < b.key.public_key().raw else (b, a)


def keep_alive(node: Node, other: Node, seconds: int) -> None:
    node.interface.set_persistent_keepalive(node.peer_of(other), seconds, node.world.now)
    node.settle()


def ages(world: World, since: int, until: int) -> list[int]:
    """Return the times between consecutive handshakes, and the age of the last one."""
    times = [since, *(flight.at for flight in world.sent(MESSAGE_INITIATION, since=since)), until]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# Keepalives


@pytest.mark.parametrize("interval", [1, 10, 25, 55])
@pytest.mark.parametrize("both", [False, True])
def test_persistent_keepalives_renew_a_session(make_world: MakeWorld, interval: int, both: bool) -> None:
    """The initiator sends only keepalives for an hour (M27)."""
    world = make_world()
    a, b = connected(world)
    start = world.now
    keep_alive(a, b, interval)
    if both:
        keep_alive(b, a, interval)
    world.run(3600 * SECOND)
    assert max(ages(world, start, world.now)) <= 120 * SECOND + interval * SECOND + TRY
    assert len(world.sent(MESSAGE_INITIATION)) <= 1 + 3600 // 120
    assert min(ages(world, start, world.now)[:-1]) >= 118 * SECOND, "renewed more often than by data"


def test_keepalives_of_both_renew_after_crossed_handshakes(make_world: MakeWorld) -> None:
    """Both interfaces come up simultaneously. The keepalives of one side reset the timer of the other, so only one of
    them sends any; here it is the one that yields."""
    world = make_world()
    first, second = crossed(world)
    start = world.now
    keep_alive(first, second, 25)
    world.run(10 * MS)
    keep_alive(second, first, 25)
    world.run(3600 * SECOND)
    assert max(ages(world, start, world.now)) <= (120 + 25 + 5) * SECOND + TRY
    assert min(ages(world, start, world.now)[:-1]) >= 118 * SECOND, "the handshakes crossed again"


@pytest.mark.parametrize(("interval", "renewed"), [(11, 165), (25, 175), (8, 168)])
def test_received_keepalives_renew_once_near_the_end(make_world: MakeWorld, interval: int, renewed: int) -> None:
    """The initiator sends nothing, and the other side only keepalives (M28)."""
    world = make_world()
    a, b = connected(world)
    start = world.now
    keep_alive(b, a, interval)
    world.run(178 * SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=start)
    assert [flight.sender for flight in renewals] == ["a"]
    assert renewed * SECOND <= renewals[0].at - start <= renewed * SECOND + 2 * SECOND


def test_a_responder_that_sends_keepalives_does_not_renew(make_world: MakeWorld) -> None:
    """Only the initiator renews (M27)."""
    world = make_world()
    a, b = connected(world)
    keep_alive(b, a, 10)
    world.run(160 * SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 1


def test_keepalives_that_answer_data_renew_a_session(make_world: MakeWorld) -> None:
    """An initiator that only receives data answers it every ten seconds, like the kernel module (M27, M33)."""
    world = make_world()
    a, b = connected(world)
    start = world.now
    for _ in range(140):
        b.send(a)
        world.run(SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=start)
    assert [flight.sender for flight in renewals] == ["a"]
    assert 119 * SECOND <= renewals[0].at - start <= 131 * SECOND


def test_a_late_message_of_the_previous_session_does_not_renew(make_world: MakeWorld) -> None:
    """The message's session is old, but the current one is new (M28)."""
    world = make_world()
    a, b = connected(world)
    world.run(118 * SECOND)
    kept: list[Flight] = []

    def keep(flight: Flight) -> list[Flight]:
        kept.append(flight)
        return []

    world.filters.append(keep)
    b.send(a, b"late")
    world.filters.clear()
    world.run(SECOND)
    b.interface.renewal.initiate(b.peer_of(a), world.now, is_retry=False)
    world.run(48 * SECOND)
    before = len(world.sent(MESSAGE_INITIATION))
    for flight in kept:
        world.carry(flight, MS)
    world.run(10 * SECOND)
    assert b"late" in a.received
    assert len(world.sent(MESSAGE_INITIATION)) == before


# Crossed handshakes


@pytest.mark.parametrize("spacing", [5, 60, 80])
def test_synchronous_senders_do_not_cross_again(make_world: MakeWorld, spacing: int) -> None:
    """This holds for any spacing that keeps a session in use (L3)."""
    world = make_world()
    first, second = crossed(world)
    start = world.now
    for _ in range(1500 // spacing):
        first.send(second)
        second.send(first)
        world.run(spacing * SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=start)
    assert all(later.at - earlier.at >= 100 * SECOND for earlier, later in itertools.pairwise(renewals))


@pytest.mark.parametrize(("age", "waits"), [(121, 5), (162, 5), (167, 3), (172, 0)])
def test_the_yielding_side_renews_if_the_other_is_silent(make_world: MakeWorld, age: int, waits: int) -> None:
    """It waits for Rekey-Timeout, but not beyond an age of 170 s. A packet at 165 s would make the other side renew, so
    that packet is lost."""
    world = make_world()
    first, second = crossed(world)
    world.run((age - 1) * SECOND)
    world.filters.append(lose(MESSAGE_TRANSPORT))
    start = world.now
    first.send(second)
    world.run(8 * SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=start)
    assert [flight.sender for flight in renewals] == [first.name]
    assert (waits - 0.1) * SECOND <= renewals[0].at - start <= waits * SECOND + TRY - 5 * SECOND


def test_the_yielding_side_waits_as_specified() -> None:
    assert Timings().rekey_on_receive_after == 165 * SECOND
    assert Timings().rekey_when_yielding_after == 170 * SECOND


# Checks of reports


def test_a_key_request_in_a_fresh_session_is_ignored(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    world.run(10 * SECOND)
    peer = a.peer_of(b)
    a.interface.handle_report(KeyWanted(peer.id), world.now)
    a.interface.handle_report(KeyWanted(peer.id, renews=0x1234), world.now)
    world.run(20 * SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 1
    world.run(170 * SECOND)
    a.send(b, b"the next request is served")
    world.run(SECOND)
    assert b.received[-1] == b"the next request is served"


def test_a_report_older_than_the_session_is_ignored(make_world: MakeWorld) -> None:
    """The control thread was busy, and the packets that needed the key have left since."""
    world = make_world()
    a, b = world.pair()
    a.plane.send_packet(a.peer_of(b).id, b"waits")
    report = a.plane.reports.popleft()
    assert report == KeyWanted(a.peer_of(b).id)
    b.send(a)
    world.run(SECOND)
    a.interface.handle_report(report, world.now)
    world.run(20 * SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 1
    assert b.received == [b"waits"]


def test_a_key_request_near_the_end_of_a_session_is_honoured(make_world: MakeWorld) -> None:
    """The packet path's clock may be ahead of the control thread's by a batch."""
    world = make_world()
    a, b = connected(world)
    world.run(170 * SECOND)
    a.interface.handle_report(KeyWanted(a.peer_of(b).id), world.now)
    assert len(world.sent(MESSAGE_INITIATION)) == 2


def test_the_confirmation_of_a_removed_session_is_ignored(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    peer = b.peer_of(a)
    old = peer.keypair_indices[0]
    b.interface.down()
    b.interface.up(world.now)
    b.settle()
    b.events.clear()
    wall = peer.last_handshake_wall
    world.run(SECOND)
    for index in (old, 0x1234):
        b.interface.handle_report(KeyConfirmed(peer.id, index), world.now)
    b.settle()
    assert peer.last_handshake_wall == wall
    assert not any(isinstance(event, HandshakeCompleted) for event in b.events)


def test_a_confirmation_is_counted_once(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    peer = b.peer_of(a)
    b.events.clear()
    b.interface.handle_report(KeyConfirmed(peer.id, peer.keypair_indices[0]), world.now)
    b.settle()
    assert b.events == []


def test_dropped_keypairs_of_another_peer_are_not_freed(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    c = world.node("c")
    stranger = a.know(c)
    indices = a.peer_of(b).keypair_indices
    a.interface.handle_report(KeypairsDropped(stranger.id, indices), world.now)
    assert len(a.interface.exchange.indices) == len(indices)
    assert a.peer_of(b).keypair_indices == indices


# Settings made last


def test_a_private_key_set_last_starts_persistent_keepalives(make_world: MakeWorld) -> None:
    """Like the kernel module, it starts immediately, even if an attempt was made less than 5 s ago (M53)."""
    world = make_world()
    a, b = world.pair()
    key = a.key
    keep_alive(a, b, 25)
    world.run(2 * SECOND)
    a.interface.set_private_key(None, world.now)
    world.run(SECOND)
    start = world.now
    a.interface.set_private_key(key, world.now)
    a.settle()
    world.run(50 * MS)
    assert [flight.at for flight in world.sent(MESSAGE_INITIATION, since=start)] == [start]
    assert len(world.sent(MESSAGE_TRANSPORT, "a", since=start)) == 1


def test_a_changed_private_key_waits_for_the_next_keepalive(make_world: MakeWorld) -> None:
    """The kernel module does not start a handshake either when one key replaces another."""
    world = make_world()
    a, b = connected(world)
    world.run(15 * SECOND)
    keep_alive(a, b, 25)
    world.run(2 * SECOND)
    start = world.now
    a.interface.set_private_key(PrivateKey(b"\x11" * 32), world.now)
    a.settle()
    world.run(10 * SECOND)
    assert world.sent(MESSAGE_INITIATION, since=start) == []
    world.run(20 * SECOND)
    assert world.sent(MESSAGE_INITIATION, since=start) != []


def test_an_endpoint_set_last_starts_persistent_keepalives(make_world: MakeWorld) -> None:
    """The kernel module has a staged keepalive in this case (M53)."""
    world = make_world()
    a, b = world.node("a"), world.node("b")
    a.know(b, endpoint=False)
    b.know(a)
    keep_alive(a, b, 25)
    world.run(2 * SECOND)
    assert world.wire == []
    start = world.now
    a.interface.set_endpoint(a.peer_of(b), b.endpoint, world.now)
    a.settle()
    world.run(50 * MS)
    assert len(world.sent(MESSAGE_INITIATION, since=start)) == 1
    assert len(world.sent(MESSAGE_TRANSPORT, "a", since=start)) == 1


def test_a_changed_endpoint_alone_sends_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    world.run(15 * SECOND)
    keep_alive(a, b, 25)
    world.run(SECOND)
    start = world.now
    a.interface.set_endpoint(a.peer_of(b), b.endpoint, world.now)
    a.settle()
    world.run(10 * SECOND)
    assert world.sent(MESSAGE_TRANSPORT, since=start) == []


def test_an_interval_set_last_starts_persistent_keepalives(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    start = world.now
    keep_alive(a, b, 25)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_TRANSPORT, "a", since=start)) == 1
    keep_alive(a, b, 20)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_TRANSPORT, "a", since=start)) == 1


def test_a_preshared_key_set_last_applies_to_the_next_attempt(make_world: MakeWorld) -> None:
    """The series of attempts continues, and its next initiation is answered."""
    world = make_world()
    psk = PresharedKey(b"p" * 32)
    a, b = world.pair()
    b.interface.set_preshared_key(b.peer_of(a), psk)
    keep_alive(a, b, 25)
    world.run(3 * SECOND)
    a.interface.set_preshared_key(a.peer_of(b), psk)
    start = world.now
    world.run(TRY)
    assert len(world.sent(MESSAGE_TRANSPORT, "a", since=start)) == 1
