"""Passive and persistent keepalives, and the handshake after silence."""

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


def test_unanswered_data_gets_one_keepalive_after_ten_seconds(make_world: MakeWorld) -> None:
    """The ten seconds start with the first unanswered data, not with the last (M33)."""
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


def test_two_idle_peers_stop_sending(make_world: MakeWorld) -> None:
    """Keepalives do not answer keepalives (I20)."""
    world = make_world()
    a, b = connected(world)
    b.send(a)
    last = world.now
    world.run(170 * SECOND)
    assert max(flight.at for flight in world.wire) <= last + 10 * SECOND + 2 * world.delay + TICK


def test_data_answered_within_ten_seconds_needs_no_keepalive(make_world: MakeWorld) -> None:
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


def test_one_way_traffic_gets_one_keepalive_per_ten_seconds(make_world: MakeWorld) -> None:
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


def test_unanswered_data_starts_a_handshake_after_15_seconds(make_world: MakeWorld) -> None:
    """Up to 333 ms of jitter is added (M34, M31)."""
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


def test_traffic_revives_a_peer_that_lost_its_state(make_world: MakeWorld) -> None:
    """It takes at most 15.4 s, although only the other side sends (L2)."""
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


def test_persistent_keepalives_start_at_once_and_keep_time(make_world: MakeWorld) -> None:
    """They start when the interface comes up or the interval is set; later ones follow a quiet interval (M53, L6)."""
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


def test_any_traffic_postpones_the_persistent_keepalive(make_world: MakeWorld) -> None:
    """It is sent only after a full quiet interval (M53, I21)."""
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


def test_persistent_keepalives_start_when_the_interface_is_up(make_world: MakeWorld) -> None:
    """Unlike in wireguard-go, the first keepalive does not wait for traffic (M53)."""
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


def test_persistent_keepalives_continue_after_giving_up(make_world: MakeWorld) -> None:
    """A peer behind a NAT is reachable again after an outage (L6)."""
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


def test_without_persistent_keepalive_an_idle_peer_is_silent(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = world.pair()
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(SECOND)
    a.interface.set_persistent_keepalive(a.peer_of(b), 0, world.now)
    start = world.now
    world.run(600 * SECOND)
    assert world.sent(MESSAGE_TRANSPORT, since=start) == []
