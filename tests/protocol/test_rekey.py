"""Renewal and expiry of sessions."""

from __future__ import annotations

import pytest

from tests.support.world import (
    MS,
    Flight,
    MakeWorld,
    connected,
    data,
    keep,
    lose,
)
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.events import SessionExpired
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_TRANSPORT,
)


def test_only_a_sending_initiator_renews_after_120_seconds(make_world: MakeWorld) -> None:
    """Rekey-After-Time applies only to the initiator (M27)."""
    world = make_world()
    a, b = connected(world)
    world.run(119 * SECOND)
    b.send(a)
    world.run(3 * SECOND)
    b.send(a)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 1
    a.send(b)
    world.run(SECOND)
    assert [flight.sender for flight in world.sent(MESSAGE_INITIATION)] == ["a", "a"]


def test_no_renewal_without_traffic(make_world: MakeWorld) -> None:
    """A quiet session expires without a message (M27, M29)."""
    world = make_world()
    connected(world)
    world.run(30 * SECOND)
    count = len(world.wire)
    world.run(1000 * SECOND)
    assert len(world.wire) == count


def test_a_receiving_initiator_renews_once_near_the_end(make_world: MakeWorld) -> None:
    """It renews at 165 s. It sends no data, and receives its data too late for a passive keepalive (M28)."""
    world = make_world()
    a, b = connected(world)
    start = world.now
    world.run(160 * SECOND)
    for _ in range(9):
        b.send(a)
        world.run(SECOND)
    renewals = world.sent(MESSAGE_INITIATION, since=start)
    assert [flight.sender for flight in renewals] == ["a"]
    assert 163 * SECOND <= renewals[0].at - start <= 167 * SECOND


@pytest.mark.parametrize(("age", "passes"), [(179_900 * MS, True), (180_100 * MS, False)])
def test_a_session_receives_for_180_seconds(make_world: MakeWorld, age: int, passes: bool) -> None:
    """The receiver determines the age (M29, I6)."""
    world = make_world()
    a, b = connected(world)
    birth = world.sent(MESSAGE_INITIATION)[0].at + world.delay
    world.run(birth + 178 * SECOND - world.now)
    world.filters.append(lambda flight: [])
    a.send(b, b"on its way")
    kept = world.sent(MESSAGE_TRANSPORT, "a")[-1]
    world.filters.clear()
    world.carry(kept, birth + age - world.now)
    world.run(5 * SECOND)
    assert (b"on its way" in b.received) is passes


def test_nothing_is_sent_just_before_a_session_expires(make_world: MakeWorld) -> None:
    """The session could expire while the packet is in flight, so it is staged, in both roles (M29, L4)."""
    world = make_world()
    a, b = connected(world)
    world.run(179_500 * MS - SECOND)
    before = len(data(world.sent(MESSAGE_TRANSPORT)))
    b.send(a, b"late")
    assert len(data(world.sent(MESSAGE_TRANSPORT))) == before
    world.run(SECOND)
    assert a.received == [b"late"]


def test_a_datagram_delayed_beyond_180_seconds_is_refused(make_world: MakeWorld) -> None:
    """The receiver applies Reject-After-Time (M29)."""
    world = make_world()
    a, b = connected(world)
    kept: list[Flight] = []
    world.filters.append(keep(kept, MESSAGE_TRANSPORT))
    a.send(b, b"slow")
    world.run(SECOND)
    world.filters.clear()
    world.carry(kept[0], 180 * SECOND)
    world.run(181 * SECOND)
    assert b.received == [b"hello"]
    assert b.plane.dropped["no_key"] == 1


def test_renewals_neither_lose_nor_reorder_packets(make_world: MakeWorld) -> None:
    """Over a thousand seconds, no packet is lost, because the previous keypair still receives (L4, M36)."""
    world = make_world()
    a, b = connected(world)
    for number in range(1000):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(SECOND)
    expected = [b"%d" % number for number in range(1000)]
    assert b.received[1:] == expected
    assert a.received == expected


@pytest.mark.parametrize("spacing", [7, 13, 29, 61, 119, 164, 171, 179, 181, 239, 545])
def test_no_packet_is_lost_at_any_spacing_of_packets(make_world: MakeWorld, spacing: int) -> None:
    """This holds even in the last seconds of a session, in both roles (L4)."""
    world = make_world()
    a, b = connected(world)
    for number in range(30):
        world.run(spacing * SECOND)
        a.send(b, b"a%d" % number)
        world.run(50 * MS)
        b.send(a, b"b%d" % number)
    world.run(10 * SECOND)
    assert b.received[1:] == [b"a%d" % number for number in range(30)]
    assert a.received == [b"b%d" % number for number in range(30)]


def test_packets_in_flight_during_a_rekey_are_decrypted(make_world: MakeWorld) -> None:
    """The previous keypair still decrypts (M36)."""
    world = make_world()
    a, b = connected(world)
    kept: list[Flight] = []
    world.filters.append(keep(kept, MESSAGE_TRANSPORT))
    for number in range(5):
        a.send(b, b"%d" % number)
    world.filters.clear()
    world.run(120 * SECOND)
    a.send(b, b"renews")
    world.run(SECOND)
    a.send(b, b"under the new key")
    world.run(SECOND)
    for flight in reversed(kept):
        world.carry(flight, MS)
    world.run(SECOND)
    assert b.received == [b"hello", b"renews", b"under the new key", b"4", b"3", b"2", b"1", b"0"]


def test_all_keys_are_erased_540_seconds_after_the_last_session(make_world: MakeWorld) -> None:
    """No timer is armed any more (M35, I16, I19)."""
    world = make_world()
    a, b = connected(world)
    world.run(541 * SECOND)
    for node in (a, b):
        assert node.plane.indices == {}
        assert len(node.interface.exchange.indices) == 0
        assert any(isinstance(event, SessionExpired) for event in node.events)
        assert node.interface.poll_timeout() is None


def test_a_failed_series_of_attempts_erases_all_keys(make_world: MakeWorld) -> None:
    """Keys are erased even if there has been no new session (M35)."""
    world = make_world()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(900 * SECOND)
    assert len(a.interface.exchange.indices) == 0
    assert a.interface.poll_timeout() is None
