"""Two interfaces, bytes moved by hand, a virtual clock: handshakes, timers, rekeying and loss.

Every scenario runs over the model data plane and over the real steps of every engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine_plane import EnginePlane
from tests.support.engines import KINDS, chosen
from tests.support.model_plane import ModelPlane
from tests.support.world import MS, Flight, Node, World, lose
from wyrmhole.protocol.constants import REKEY_TIMEOUT_JITTER, SECOND, Timings
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.events import HandshakeCompleted, HandshakeGaveUp, HandshakeRefused, SessionExpired
from wyrmhole.protocol.keys import PresharedKey
from wyrmhole.protocol.timer_wheel import TICK_SHIFT
from wyrmhole.wire.messages import (
    MESSAGE_COOKIE_REPLY,
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
    MESSAGE_TRANSPORT,
)


@pytest.fixture(params=["model", *KINDS], autouse=True)
def plane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each scenario runs on the model data plane and on every engine."""
    with chosen("portable" if request.param == "model" else request.param):
        monkeypatch.setattr(World, "make_plane", ModelPlane if request.param == "model" else EnginePlane)
        yield


TICK = 1 << TICK_SHIFT
KEEPALIVE_SIZE = 32


def connected(world: World) -> tuple[Node, Node]:
    a, b = world.pair()
    a.send(b, b"hello")
    world.run(SECOND)
    assert b.received == [b"hello"]
    return a, b


def gaps(flights: list[Flight]) -> list[int]:
    return [later.at - earlier.at for earlier, later in itertools.pairwise(flights)]


def keep(kept: list[Flight], kind: int) -> Callable[[Flight], list[Flight]]:
    """A filter that takes this message type off the wire into the list."""

    def filter_(flight: Flight) -> list[Flight]:
        if flight.kind != kind:
            return [flight]
        kept.append(flight)
        return []

    return filter_


def data(flights: list[Flight]) -> list[Flight]:
    return [flight for flight in flights if len(flight.data) > KEEPALIVE_SIZE]


# Handshake


def test_first_packet_starts_a_handshake_and_arrives() -> None:
    """M19: the staged packet itself confirms the key, so no keepalive is needed."""
    world = World()
    connected(world)
    assert [flight.kind for flight in world.wire] == [MESSAGE_INITIATION, MESSAGE_RESPONSE, MESSAGE_TRANSPORT]


def test_initiator_confirms_with_a_keepalive_when_it_has_nothing_to_say() -> None:
    """M19: within one round trip of message 2."""
    world = World()
    a, b = world.pair()
    a.plane.send_keepalive(a.peer_of(b).id)
    a.settle()
    world.run(SECOND)
    transport = world.sent(MESSAGE_TRANSPORT)
    assert [len(flight.data) for flight in transport] == [KEEPALIVE_SIZE]
    assert transport[0].at == world.sent(MESSAGE_RESPONSE)[0].at + world.delay


def test_responder_sends_nothing_under_the_key_before_it_is_confirmed() -> None:
    """M18, I8."""
    world = World()
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


def test_staged_packets_leave_in_order_and_the_oldest_give_way() -> None:
    """M49, L9."""
    world = World()
    a, b = world.pair()
    for number in range(130):
        a.send(b, b"%d" % number)
    world.run(SECOND)
    assert b.received == [b"%d" % number for number in range(2, 130)]
    assert a.plane.dropped["staging_full"] == 2


def test_with_a_preshared_key_on_both_sides() -> None:
    """M17."""
    world = World()
    a, b = world.pair(psk=PresharedKey(b"p" * 32))
    a.send(b)
    world.run(SECOND)
    assert b.received == [b"data"]


def test_a_preshared_key_on_one_side_never_completes_and_none_equals_zeros() -> None:
    """M17."""
    world = World()
    a, b = world.pair()
    a.interface.set_preshared_key(a.peer_of(b), PresharedKey(b"p" * 32))
    a.send(b)
    world.run(200 * SECOND)
    assert b.received == []
    assert not any(isinstance(event, HandshakeCompleted) for event in a.events + b.events)
    a.interface.set_preshared_key(a.peer_of(b), PresharedKey(bytes(32)))
    a.send(b, b"zeros are none")
    world.run(10 * SECOND)
    assert b.received == [b"zeros are none"]


def test_a_changed_preshared_key_waits_for_the_next_handshake() -> None:
    """I26: the live session goes on."""
    world = World()
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


@pytest.mark.parametrize("lost", [MESSAGE_INITIATION, MESSAGE_RESPONSE])
def test_a_lost_handshake_message_is_made_up_for_after_rekey_timeout(lost: int) -> None:
    """M30, M31, L1."""
    world = World()
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


def test_every_attempt_has_fresh_keys_and_indices() -> None:
    """M9, M10, I10: nothing in two initiations is the same, and the timestamps rise."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(100 * SECOND)
    initiations = [flight.data for flight in world.sent(MESSAGE_INITIATION)]
    assert len({data[4:8] for data in initiations}) == len(initiations) == 20
    assert len({data[8:40] for data in initiations}) == 20


def test_one_initiation_in_five_seconds_whatever_asks_for_it() -> None:
    """M30, I7: a stream of packets, restarts of the reason, and no answer."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose())
    for _ in range(600):
        a.send(b)
        a.interface.set_preshared_key(a.peer_of(b), None)
        a.plane.send_keepalive(a.peer_of(b).id)
        a.settle()
        world.run(500 * MS)
    assert min(gaps(world.sent(MESSAGE_INITIATION))) >= 5 * SECOND


def test_retries_carry_jitter() -> None:
    """M31."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(120 * SECOND)
    between = gaps(world.sent(MESSAGE_INITIATION))
    assert all(5 * SECOND <= gap <= 5 * SECOND + REKEY_TIMEOUT_JITTER + TICK for gap in between)
    assert len(set(between)) > 5


def test_gives_up_after_twenty_initiations_and_starts_again_with_the_next_packet() -> None:
    """M32, L5, L9: the last one leaves 90 to 102 s after the first, staged packets are dropped by name."""
    world = World()
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


def test_traffic_that_goes_on_does_not_keep_a_hopeless_handshake_alive() -> None:
    """M32, L9."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose())
    for _ in range(100):
        a.send(b)
        world.run(SECOND)
    world.run(10 * SECOND)
    assert any(isinstance(event, HandshakeGaveUp) for event in a.events)


# Crossed and repeated handshakes


def test_both_sides_initiate_at_once() -> None:
    """B21, L3: data flows both ways after one round trip."""
    world = World()
    a, b = world.pair()
    a.send(b, b"from a")
    b.send(a, b"from b")
    world.run(50 * MS)
    assert (a.received, b.received) == ([b"from b"], [b"from a"])


def test_crossed_handshakes_do_not_cross_again_at_every_renewal() -> None:
    """L3: at most one initiation in 120 s afterwards."""
    world = World()
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


def test_a_second_response_to_one_initiation_is_nothing() -> None:
    """B18, B19, B20."""
    world = World()
    a, b = connected(world)
    response = world.sent(MESSAGE_RESPONSE)[0]
    events = list(a.events)
    world.carry(response, MS)
    world.run(SECOND)
    refused = HandshakeRefused(DropReason.UNEXPECTED_RESPONSE, b.endpoint)
    assert [event for event in a.events if event != refused] == events, "an engine drops it before it is reported"
    a.send(b, b"still")
    world.run(SECOND)
    assert b.received[-1] == b"still"


def test_a_replayed_initiation_gets_no_answer_and_moves_nothing() -> None:
    """M13, B15, I11."""
    world = World()
    a, b = connected(world)
    initiation = world.sent(MESSAGE_INITIATION)[0]
    stranger = world.node("stranger")
    world.carry(Flight(world.now, "eve", stranger.endpoint, b.endpoint, initiation.data), MS)
    count = len(world.wire)
    world.run(SECOND)
    assert len(world.wire) == count
    assert b.peer_of(a).endpoint == a.endpoint


def test_reflected_messages_are_dropped() -> None:
    """B22."""
    world = World()
    a, b = connected(world)
    before = len(world.wire)
    for flight in list(world.wire):
        world.carry(Flight(world.now, "eve", flight.destination, flight.source, flight.data), MS)
    world.run(SECOND)
    assert len(world.wire) == before
    assert a.received == []
    assert b.received == [b"hello"]


def test_a_corrupt_timestamp_does_not_use_the_true_one_up() -> None:
    """M14: the timestamp counts only when its tag verifies."""
    world = World()
    a, b = world.pair()

    def corrupt_first_then_true(flight: Flight) -> list[Flight]:
        if flight.kind != MESSAGE_INITIATION:
            return [flight]
        broken = bytearray(flight.data)
        broken[100] ^= 1
        from wyrmhole.protocol.cookie import mac1_key
        from wyrmhole.protocol.primitives import mac

        broken[116:132] = mac(mac1_key(b.key.public_key()), bytes(broken[:116]))
        world.carry(Flight(flight.at, "eve", flight.source, flight.destination, bytes(broken)), MS)
        return [flight]

    world.filters.append(corrupt_first_then_true)
    a.send(b)
    world.run(SECOND)
    assert b.received == [b"data"]


def test_initiations_of_one_peer_have_a_floor() -> None:
    """M15, B61: a peer that restarts every 10 ms is served every 20 ms at most."""
    world = World(delay=MS)
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


# Renewal and expiry


def test_only_the_initiator_renews_after_120_seconds_of_sending() -> None:
    """M27."""
    world = World()
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


def test_no_renewal_without_traffic() -> None:
    """M27, M29: a quiet session ends without a word."""
    world = World()
    connected(world)
    world.run(30 * SECOND)
    count = len(world.wire)
    world.run(1000 * SECOND)
    assert len(world.wire) == count


def test_initiator_that_only_receives_renews_near_the_end_once() -> None:
    """M28: at 165 s. It answers nothing, and what it would send in answer to data is lost with the timer: the data
    comes in the last seconds."""
    world = World()
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
def test_a_session_receives_until_180_seconds_and_no_longer(age: int, passes: bool) -> None:
    """M29, I6: the age is counted at the receiver."""
    world = World()
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


def test_nothing_is_sent_on_a_session_that_could_end_before_it_arrives() -> None:
    """M29, L4: the packet waits for a handshake, in both roles."""
    world = World()
    a, b = connected(world)
    world.run(179_500 * MS - SECOND)
    before = len(data(world.sent(MESSAGE_TRANSPORT)))
    b.send(a, b"late")
    assert len(data(world.sent(MESSAGE_TRANSPORT))) == before
    world.run(SECOND)
    assert a.received == [b"late"]


def test_a_datagram_delayed_beyond_180_seconds_is_refused() -> None:
    """M29."""
    world = World()
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


def test_no_packet_is_lost_or_reordered_over_a_thousand_seconds_of_renewals() -> None:
    """L4, M36."""
    world = World()
    a, b = connected(world)
    for number in range(1000):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(SECOND)
    expected = [b"%d" % number for number in range(1000)]
    assert b.received[1:] == expected
    assert a.received == expected


@pytest.mark.parametrize("spacing", [7, 13, 29, 61, 119, 164, 171, 179, 181, 239, 545])
def test_no_packet_is_lost_at_any_spacing(spacing: int) -> None:
    """L4: also in the last seconds of a session, in both roles."""
    world = World()
    a, b = connected(world)
    for number in range(30):
        world.run(spacing * SECOND)
        a.send(b, b"a%d" % number)
        world.run(50 * MS)
        b.send(a, b"b%d" % number)
    world.run(10 * SECOND)
    assert b.received[1:] == [b"a%d" % number for number in range(30)]
    assert a.received == [b"b%d" % number for number in range(30)]


def test_packets_under_way_while_the_key_changes_still_open() -> None:
    """M36: the previous keypair."""
    world = World()
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


def test_all_keys_are_gone_after_540_seconds_without_a_session() -> None:
    """M35, I16, I19: and no timer is left."""
    world = World()
    a, b = connected(world)
    world.run(541 * SECOND)
    for node in (a, b):
        assert node.plane.indices == {}
        assert len(node.interface.exchange.indices) == 0
        assert any(isinstance(event, SessionExpired) for event in node.events)
        assert node.interface.poll_timeout() is None


def test_a_failed_series_of_attempts_leaves_no_key_either() -> None:
    """M35."""
    world = World()
    a, b = world.pair()
    world.filters.append(lose())
    a.send(b)
    world.run(900 * SECOND)
    assert len(a.interface.exchange.indices) == 0
    assert a.interface.poll_timeout() is None


# Keepalives and silence


def test_data_that_gets_no_answer_is_answered_by_one_keepalive_after_ten_seconds() -> None:
    """M33: ten seconds after the first unanswered data, not after the last."""
    world = World()
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


def test_two_idle_peers_fall_silent() -> None:
    """I20: keepalives do not answer keepalives."""
    world = World()
    a, b = connected(world)
    b.send(a)
    last = world.now
    world.run(170 * SECOND)
    assert max(flight.at for flight in world.wire) <= last + 10 * SECOND + 2 * world.delay + TICK


def test_an_answer_in_time_needs_no_keepalive() -> None:
    world = World()
    a, b = connected(world)
    world.run(30 * SECOND)
    start = world.now
    for _ in range(30):
        a.send(b)
        world.run(SECOND)
        b.send(a)
        world.run(SECOND)
    assert len(data(world.sent(MESSAGE_TRANSPORT, since=start))) == len(world.sent(MESSAGE_TRANSPORT, since=start))


def test_one_way_traffic_gets_one_keepalive_in_ten_seconds() -> None:
    """I21."""
    world = World()
    a, b = connected(world)
    world.run(30 * SECOND)
    start = world.now
    for _ in range(60):
        a.send(b)
        world.run(SECOND)
    keepalives = world.sent(MESSAGE_TRANSPORT, "b", since=start)
    assert 5 <= len(keepalives) <= 6
    assert min(gaps(keepalives)) >= 10 * SECOND


def test_data_without_any_answer_starts_a_handshake_after_fifteen_seconds() -> None:
    """M34, M31: with jitter."""
    world = World()
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


def test_a_peer_that_lost_its_state_is_found_again_by_the_other_side_s_traffic() -> None:
    """L2, B62: within 15.4 s although only the other side talks."""
    world = World()
    a, b = connected(world)
    world.run(20 * SECOND)
    b.interface.down()
    b.interface.up(world.now)
    a.send(b, b"into the void")
    world.run(15 * SECOND + REKEY_TIMEOUT_JITTER + TICK + 50 * MS)
    a.send(b, b"found")
    world.run(50 * MS)
    assert b.received[-1] == b"found"


def test_persistent_keepalive_starts_at_once_and_keeps_its_interval() -> None:
    """M53, L6: at interface up, when set later, and only after a full quiet interval."""
    world = World()
    a, b = world.pair()
    start = world.now
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(101 * SECOND)
    transport = world.sent(MESSAGE_TRANSPORT, "a", since=start)
    assert transport[0].at - start <= 50 * MS
    assert all(25 * SECOND <= gap <= 25 * SECOND + TICK for gap in gaps(transport))
    assert len(transport) == 5


def test_persistent_keepalive_is_put_off_by_any_traffic() -> None:
    """M53, I21."""
    world = World()
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


def test_a_packet_that_came_before_the_interface_was_up_still_starts_a_handshake() -> None:
    """Found by fuzzing: the key was wanted once, nobody listened, and the tunnel stayed deaf. The report of the first
    packet can be ahead of that of the TUN coming up, and while a port is taken there is no `up` at all."""
    world = World()
    a, b = world.pair()
    a.interface.down()
    a.send(b, b"early")
    a.interface.up(world.now)
    a.settle()
    world.run(SECOND)
    assert b.received == [b"early"]


def test_persistent_keepalive_starts_when_the_interface_comes_up() -> None:
    """M53; wireguard-go does not."""
    world = World()
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


def test_persistent_keepalive_outlives_a_handshake_that_gave_up() -> None:
    """L6."""
    world = World()
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


def test_persistent_keepalive_off_means_silence() -> None:
    world = World()
    a, b = world.pair()
    a.interface.set_persistent_keepalive(a.peer_of(b), 25, world.now)
    a.settle()
    world.run(SECOND)
    a.interface.set_persistent_keepalive(a.peer_of(b), 0, world.now)
    start = world.now
    world.run(600 * SECOND)
    assert world.sent(MESSAGE_TRANSPORT, since=start) == []


# Roaming


def test_the_endpoint_follows_authenticated_data() -> None:
    """M44, B42, L6."""
    world = World()
    a, b = connected(world)
    a.endpoint = type(a.endpoint)("198.51.100.9", 7)
    a.send(b, b"moved")
    world.run(SECOND)
    b.send(a, b"follows")
    world.run(SECOND)
    assert a.received == [b"follows"]
    assert b.peer_of(a).endpoint == a.endpoint


def test_a_cookie_reply_moves_nothing() -> None:
    """M42, B41, I11: not even a genuine one from another address."""
    world = World()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    moved = type(a.endpoint)("203.0.113.1", 1)

    def spoof(flight: Flight) -> list[Flight]:
        if flight.kind == MESSAGE_COOKIE_REPLY:
            return [Flight(flight.at, "eve", moved, flight.destination, flight.data)]
        return [flight]

    world.filters.append(spoof)
    a.send(b)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 1
    assert a.peer_of(b).endpoint == b.endpoint


# Load


def test_under_load_the_second_attempt_carries_the_cookie_and_is_served() -> None:
    """M38, M41, M43: no immediate resend; mac2 is zeros first and right afterwards."""
    world = World()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    a.send(b)
    world.run(4 * SECOND)
    first = world.sent(MESSAGE_INITIATION)
    assert len(first) == 1
    assert first[0].data[-16:] == bytes(16)
    assert world.sent(MESSAGE_RESPONSE) == []
    world.run(2 * SECOND)
    second = world.sent(MESSAGE_INITIATION)[1]
    assert second.data[-16:] != bytes(16)
    assert b.received == [b"data"]


def test_a_cookie_of_one_port_is_refused_on_another() -> None:
    """M39: boringtun and gotatun bind the cookie to the address alone."""
    world = World()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    a.send(b)
    world.run(4 * SECOND)
    a.endpoint = type(a.endpoint)(a.endpoint.host, 4444)
    world.run(3 * SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 2
    assert world.sent(MESSAGE_RESPONSE) == []


def test_load_ends_a_second_after_the_queue_drained() -> None:
    """I23, L8."""
    world = World()
    a, b = world.pair()
    c = world.node("c")
    c.know(b)
    b.know(c)
    b.plane.queue_depth = 128
    c.send(b)
    world.run(100 * MS)
    b.plane.queue_depth = 0
    world.run(500 * MS)
    a.send(b)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 2
    world.run(10 * SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 2
    assert set(b.received) == {b"data"}


# Configuration


def test_a_new_private_key_stops_sending_at_once_and_handshakes_anew() -> None:
    """M52."""
    world = World()
    a, b = connected(world)
    world.run(10 * SECOND)
    fresh = type(a.key)(b"\x11" * 32)
    b.interface.remove_peer(b.peer_of(a))
    a.interface.set_private_key(fresh, world.now)
    a.key = fresh
    b.know(a)
    before = len(world.wire)
    a.send(b, b"as another")
    assert world.wire[before].kind == MESSAGE_INITIATION
    world.run(SECOND)
    assert b.received[-1] == b"as another"


def test_our_own_key_is_no_peer() -> None:
    """M51: neither added, nor kept when the private key becomes it."""
    world = World()
    a, b = world.pair()
    assert a.interface.add_peer(a.key.public_key()) is None
    a.interface.set_private_key(b.key, world.now)
    assert a.interface.peer(b.key.public_key()) is None


def test_without_a_private_key_nothing_is_sent() -> None:
    """wireguard-go sends handshakes with no private key set."""
    world = World()
    a, b = world.pair()
    a.interface.set_private_key(None, world.now)
    a.interface.set_persistent_keepalive(a.peer_of(b), 1, world.now)
    a.send(b)
    b.send(a)
    world.run(20 * SECOND)
    assert world.sent(MESSAGE_INITIATION, "a") == []
    assert a.plane.dropped["bad_mac1"] > 0


LOW_ORDER = [
    bytes(32),
    bytes((1,)) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda raw: raw.hex()[:6])
def test_a_low_order_peer_key_gets_no_packet(public: bytes) -> None:
    """M16: static-static comes out zero, so nothing leaves; boringtun and gotatun answer such keys."""
    from wyrmhole.protocol.keys import PublicKey

    world = World()
    a = world.node("a")
    peer = a.interface.add_peer(PublicKey(public))
    assert peer is not None
    a.interface.set_endpoint(peer, type(a.endpoint)("192.0.2.200", 1), world.now)
    a.interface.set_persistent_keepalive(peer, 1, world.now)
    a.settle()
    world.run(2 * SECOND)
    assert world.wire == []


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda raw: raw.hex()[:6])
def test_a_low_order_ephemeral_is_refused_in_both_roles(public: bytes) -> None:
    """M16, B13."""
    from wyrmhole.protocol.cookie import mac1_key
    from wyrmhole.protocol.primitives import mac

    world = World()
    a, b = world.pair()

    def weaken(flight: Flight) -> list[Flight]:
        if flight.kind not in (MESSAGE_INITIATION, MESSAGE_RESPONSE):
            return [flight]
        at = 8 if flight.kind == MESSAGE_INITIATION else 12
        receiver = b if flight.sender == "a" else a
        weak = bytearray(flight.data)
        weak[at : at + 32] = public
        weak[-32:-16] = mac(mac1_key(receiver.key.public_key()), bytes(weak[:-32]))
        return [Flight(flight.at, flight.sender, flight.source, flight.destination, bytes(weak))]

    world.filters.append(weaken)
    a.send(b)
    world.run(30 * SECOND)
    assert world.sent(MESSAGE_RESPONSE) == []
    world.filters.clear()
    world.filters.append(lambda flight: weaken(flight) if flight.kind == MESSAGE_RESPONSE else [flight])
    world.run(30 * SECOND)
    assert len(world.sent(MESSAGE_RESPONSE)) > 0
    assert world.sent(MESSAGE_TRANSPORT) == []


def test_a_removed_peer_leaves_nothing_behind() -> None:
    """L10, I14, I19, B80."""
    world = World()
    a, b = connected(world)
    late = world.sent(MESSAGE_TRANSPORT)[0]
    for node, other in ((a, b), (b, a)):
        node.interface.remove_peer(node.peer_of(other))
        node.settle()
        assert len(node.interface.exchange.indices) == 0
        assert node.interface.poll_timeout() is None
        assert node.plane.indices == {}
    world.carry(late, MS)
    world.run(SECOND)


def test_at_most_three_keypairs_and_one_handshake_for_a_peer() -> None:
    """I14, I15."""
    world = World()
    a, b = connected(world)
    world.filters.append(lose(MESSAGE_TRANSPORT))
    for _ in range(40):
        a.send(b)
        b.send(a)
        world.run(17 * SECOND)
        for node in (a, b):
            assert len(node.interface.exchange.indices) <= 4
            assert len(node.plane.indices) <= 3


def test_going_down_forgets_sessions_and_coming_up_makes_new_ones() -> None:
    world = World()
    a, b = connected(world)
    a.interface.down()
    a.settle()
    assert len(a.interface.exchange.indices) == 0
    assert a.interface.poll_timeout() is None
    a.interface.up(world.now)
    a.send(b, b"back")
    world.run(SECOND)
    assert b.received[-1] == b"back"


def test_a_packet_that_came_before_the_interface_was_up_gets_its_handshake() -> None:
    """The TUN comes up before its sockets are open, or these could not be had for a while; a key is asked for once."""
    world = World()
    a, b = connected(world)
    a.interface.down()
    a.settle()
    a.send(b, b"early")
    world.run(SECOND)
    assert b.received[-1:] != [b"early"]
    a.interface.up(world.now)
    world.run(SECOND)
    assert b.received[-1] == b"early"


def test_transfer_counters_include_handshakes_and_headers() -> None:
    """I31."""
    world = World()
    a, b = connected(world)
    a_sent = sum(len(flight.data) for flight in world.wire if flight.sender == "a")
    b_sent = sum(len(flight.data) for flight in world.wire if flight.sender == "b")
    counters = a.plane.counters(a.peer_of(b).id)
    assert (counters.tx_bytes, counters.rx_bytes) == (a_sent, b_sent)
    counters = b.plane.counters(b.peer_of(a).id)
    assert (counters.tx_bytes, counters.rx_bytes) == (b_sent, a_sent)


# Clocks


def test_ten_minutes_of_suspend_are_ten_minutes_of_age() -> None:
    """B63: the first packet after it starts a handshake at once."""
    world = World()
    a, b = connected(world)
    world.now += 600 * SECOND
    a.send(b, b"awake")
    assert world.wire[-1].kind == MESSAGE_INITIATION
    world.run(SECOND)
    assert b.received[-1] == b"awake"


@pytest.mark.parametrize("jump", [-365, 365])
def test_a_wall_clock_that_jumps_by_a_year_disturbs_nothing(jump: int) -> None:
    """B64, B17, L7: sessions go on, and the next handshake succeeds at once."""
    world = World()
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


def test_shortened_timings_shorten_everything_together() -> None:
    short = Timings(2 * SECOND, 6 * SECOND, 3 * SECOND, SECOND, SECOND)
    world = World(timings=short)
    a, b = connected(world)
    for number in range(600):
        a.send(b, b"%d" % number)
        world.run(100 * MS)
    assert 20 <= len(world.sent(MESSAGE_INITIATION)) <= 31
    assert b.received[1:] == [b"%d" % number for number in range(600)]


def test_data_is_never_lost_on_a_network_that_only_reorders() -> None:
    """M36, L4: with shortened renewals and delays of up to 0.3 s."""
    short = Timings(4 * SECOND, 12 * SECOND, 3 * SECOND, SECOND, 2 * SECOND)
    world = World(timings=short, seed=7)
    a, b = connected(world)

    def shuffle(flight: Flight) -> list[Flight]:
        world.carry(flight, world.random.randrange(300 * MS))
        return []

    world.filters.append(shuffle)
    for number in range(2000):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(20 * MS)
    world.run(SECOND)
    assert sorted(b.received[1:]) == sorted(b"%d" % number for number in range(2000))
    assert sorted(a.received) == sorted(b"%d" % number for number in range(2000))


@pytest.mark.parametrize("seed", range(20))
def test_a_network_that_loses_a_third_and_doubles_some_heals(seed: int) -> None:
    """I1, I3, L1: nothing twice, and once the faults stop data flows within 15.4 s."""
    world = World(seed=seed)
    a, b = world.pair()

    def terrible(flight: Flight) -> list[Flight]:
        chance = world.random.random()
        if chance < 0.2:
            world.carry(flight, world.random.randrange(2 * SECOND))
        return [] if chance < 0.33 else [flight, flight] if chance < 0.5 else [flight]

    world.filters.append(terrible)
    for number in range(300):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        world.run(SECOND)
    world.filters.clear()
    world.run(2 * SECOND)
    a.send(b, b"healed")
    b.send(a, b"healed")
    world.run(15_400 * MS)
    for node in (a, b):
        assert len(set(node.received)) == len(node.received)
        assert node.received[-1] == b"healed"
