"""Keepalives, passive and persistent, and what silence starts."""

from __future__ import annotations

from tests.support.world import (
    KEEPALIVE_SIZE,
    MS,
    TICK,
    MakeWorld,
    connected,
    data,
    gaps,
    lose,
)
from wyrmhole.protocol.constants import REKEY_TIMEOUT_JITTER, SECOND
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_TRANSPORT,
)


def test_data_that_gets_no_answer_is_answered_by_one_keepalive_after_ten_seconds(make_world: MakeWorld) -> None:
    """Ten seconds after the first unanswered data, not after the last (M33)."""
    world = make_world()
    a, b = connected(world)
    world.run(30 * SECOND)
    start = world.now
    for _ in range(5):
        a.send(b)
        world.run(SECOND)
    world.run(20 * SECOND)
    keepalives = world.sent(MESSAGE_TRANSPORT, "b", since=start)
    assert [len(flight.data) for flight in keepalives] == [KEEPALIVE_SIZE]
    assert abs(keepalives[0].at - (start + world.delay + 10 * SECOND)) <= TICK


def test_two_idle_peers_fall_silent(make_world: MakeWorld) -> None:
    """Keepalives do not answer keepalives (I20)."""
    world = make_world()
    a, b = connected(world)
    b.send(a)
    last = world.now
    world.run(170 * SECOND)
    assert max(flight.at for flight in world.wire) <= last + 10 * SECOND + 2 * world.delay + TICK


def test_an_answer_in_time_needs_no_keepalive(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    world.run(30 * SECOND)
    start = world.now
    for _ in range(30):
        a.send(b)
        world.run(SECOND)
        b.send(a)
        world.run(SECOND)
    assert len(data(world.sent(MESSAGE_TRANSPORT, since=start))) == len(world.sent(MESSAGE_TRANSPORT, since=start))


def test_one_way_traffic_gets_one_keepalive_in_ten_seconds(make_world: MakeWorld) -> None:
    """Passive keepalives are at least 10 s apart (I21)."""
    world = make_world()
    a, b = connected(world)
    world.run(30 * SECOND)
    start = world.now
    for _ in range(60):
        a.send(b)
        world.run(SECOND)
    keepalives = world.sent(MESSAGE_TRANSPORT, "b", since=start)
    assert 5 <= len(keepalives) <= 6
    assert min(gaps(keepalives)) >= 10 * SECOND


def test_data_without_any_answer_starts_a_handshake_after_fifteen_seconds(make_world: MakeWorld) -> None:
    """Up to 333 ms of jitter are added (M34, M31)."""
    world = make_world()
    a, b = connected(world)
    world.run(30 * SECOND)
    world.filters.append(lose(sender="b"))
    start = world.now
    a.send(b)
    world.run(20 * SECOND)
    initiations = world.sent(MESSAGE_INITIATION, since=start)
    assert len(initiations) == 1
    late = initiations[0].at - start - 15 * SECOND
    assert 0 <= late <= REKEY_TIMEOUT_JITTER + TICK


def test_a_peer_that_lost_its_state_is_found_again_by_the_other_side_s_traffic(make_world: MakeWorld) -> None:
    """Within 15.4 s although only the other side talks (L2)."""
    world = make_world()
    a, b = connected(world)
    world.run(20 * SECOND)
    b.interface.down()
    b.interface.up(world.now)
    a.send(b, b"into the void")
    world.run(15 * SECOND + REKEY_TIMEOUT_JITTER + TICK + 50 * MS)
    a.send(b, b"found")
    world.run(50 * MS)
    assert b.received[-1] == b"found"


def test_persistent_keepalive_starts_at_once_and_keeps_its_interval(make_world: MakeWorld) -> None:
    """At interface up, when set later, and only after a full quiet interval (M53, L6)."""
    world = make_world()
    a, b = world.pair()
    start = world.now
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(101 * SECOND)
    transport = world.sent(MESSAGE_TRANSPORT, "a", since=start)
    assert transport[0].at - start <= 50 * MS
    assert all(25 * SECOND <= gap <= 25 * SECOND + TICK for gap in gaps(transport))
    assert len(transport) == 5


def test_persistent_keepalive_is_put_off_by_any_traffic(make_world: MakeWorld) -> None:
    """A persistent keepalive needs a full quiet interval (M53, I21)."""
    world = make_world()
    a, b = connected(world)
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(SECOND)
    start = world.now
    for _ in range(50):
        a.send(b)
        world.run(SECOND)
        b.send(a)
        world.run(SECOND)
    assert [len(flight.data) for flight in world.sent(MESSAGE_TRANSPORT, since=start)].count(KEEPALIVE_SIZE) == 0


def test_persistent_keepalive_starts_when_the_interface_comes_up(make_world: MakeWorld) -> None:
    """Unlike wireguard-go, the keepalive does not wait for traffic (M53)."""
    world = make_world()
    a, b = world.pair()
    a.interface.down()
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(60 * SECOND)
    assert world.wire == []
    a.interface.up(world.now)
    a.settle()
    world.run(SECOND)
    assert len(world.sent(MESSAGE_TRANSPORT, "a")) == 1


def test_persistent_keepalive_outlives_a_handshake_that_gave_up(make_world: MakeWorld) -> None:
    """A peer behind a NAT stays reachable after an outage (L6)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(400 * SECOND)
    world.filters.clear()
    world.run(40 * SECOND)
    b.send(a, b"reached")
    world.run(SECOND)
    assert a.received == [b"reached"]


def test_persistent_keepalive_off_means_silence(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = world.pair()
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(SECOND)
    a.interface.set_persistent_keepalive(a.peer_of(b), 0, world.now)
    start = world.now
    world.run(600 * SECOND)
    assert world.sent(MESSAGE_TRANSPORT, since=start) == []
