"""Which handshake messages are queued, and where: each type has a first check of its own."""

from __future__ import annotations

import pytest

from tests.support.packets import ipv4
from tests.support.sides import A_INNER, A_OUTER, B_INNER, OUR_KEY, Side, connected, handshake_message, outer
from wyrmhole.datapath.gate import REPLIES_PER_INITIATION
from wyrmhole.protocol.constants import COOKIE_LIFETIME, MAX_QUEUED_HANDSHAKES, SECOND, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.cookie import CookieChecker, CookieGenerator
from wyrmhole.protocol.data_plane import HandshakeDatagram
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.exchange import Exchange, Reply
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import CookieReply

INDEX = 0x01020304
SECRET = bytes(range(32))


def cookie_reply(index: int = INDEX) -> bytes:
    return CookieReply(index, bytes(24), bytes(32)).emit()


def response(index: int = INDEX, *, filling: int = 0) -> bytes:
    body = b"\2\0\0\0" + bytes(4) + index.to_bytes(4, "little") + bytes((filling,)) * 48
    return CookieGenerator(OUR_KEY).add_macs(body, 0)


def initiation_with_cookie(endpoint: Endpoint, secret: bytes = SECRET, now: int = 0) -> bytes:
    """What an honest peer sends after our cookie reply to its first initiation."""
    sender = CookieGenerator(OUR_KEY)
    first = sender.add_macs(b"\1\0\0\0" + bytes(112), now)
    checker = CookieChecker(OUR_KEY, lambda size: secret[:size])
    assert sender.consume_reply(CookieReply.parse(checker.create_reply(first, 0, endpoint, now)), now)
    return sender.add_macs(b"\1\0\0\0" + bytes(112), now)


def handshakes(side: Side) -> list[HandshakeDatagram]:
    return [report for report in side.reports() if isinstance(report, HandshakeDatagram)]


def flood(side: Side, count: int = MAX_QUEUED_HANDSHAKES) -> None:
    """Initiations with a good mac1 from addresses that do not repeat."""
    for number in range(count):
        side.network(handshake_message(), outer(number))


def test_a_cookie_reply_without_an_initiation_is_dropped_by_name() -> None:
    _, b = connected()
    b.network(cookie_reply(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1}
    assert handshakes(b) == []


def test_an_initiation_earns_few_cookie_replies() -> None:
    """One that is forged, by whoever saw the initiation, does not keep the true one out."""
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.network(cookie_reply(INDEX + 1), A_OUTER)
    few = REPLIES_PER_INITIATION[3]
    for _ in range(few + 5):
        b.network(cookie_reply(), A_OUTER)
    assert [report.data for report in handshakes(b)] == [cookie_reply()] * few
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 6}


def test_an_initiation_that_ended_is_answered_no_more() -> None:
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.network(cookie_reply(), A_OUTER)
    b.network(response(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1, DropReason.UNEXPECTED_RESPONSE: 1}


def test_a_response_without_an_initiation_is_dropped_by_name() -> None:
    _, b = connected()
    b.network(response(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_RESPONSE: 1}
    assert handshakes(b) == []


def test_the_receiver_index_of_a_live_session_is_no_initiation() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    index = int.from_bytes(a.take()[-1][4:8], "little")
    b.network(cookie_reply(index), A_OUTER)
    b.network(response(index), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1, DropReason.UNEXPECTED_RESPONSE: 1}


def test_a_forged_response_does_not_keep_the_real_one_out() -> None:
    """Whoever sees our initiation knows its index; only the place in front is used up by the first response."""
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.network(response(filling=1), outer(1))
    b.network(response(), A_OUTER)
    assert [report.data for report in handshakes(b)] == [response(filling=1), response()]


def test_stray_replies_are_no_load_and_mark_no_source() -> None:
    _, b = connected()
    for _ in range(4 * MAX_QUEUED_HANDSHAKES):
        b.network(cookie_reply(), A_OUTER)
        b.network(response(), A_OUTER)
    flood(b, UNDER_LOAD_QUEUE_DEPTH)
    b.network(handshake_message(), A_OUTER)
    taken = handshakes(b)
    assert taken[-1].endpoint == A_OUTER
    assert taken[0].queue_depth == UNDER_LOAD_QUEUE_DEPTH


def test_replies_come_first_in_spite_of_a_full_queue_and_are_no_load() -> None:
    _, b = connected()
    flood(b)
    b.engine.begin_initiation(INDEX)
    for message in (cookie_reply(), response()):
        b.network(message, A_OUTER)
    assert b.drops() == {}
    first, second, third, *_ = handshakes(b)
    assert [first.data, second.data] == [cookie_reply(), response()]
    assert first.queue_depth == second.queue_depth == MAX_QUEUED_HANDSHAKES
    assert third.queue_depth == MAX_QUEUED_HANDSHAKES - 1


@pytest.mark.parametrize("endpoint", [A_OUTER, Endpoint("2001:db8::7", 7), outer(3)], ids=["v4", "v6", "flooded"])
def test_a_valid_cookie_passes_a_full_queue_of_quiet_sources(endpoint: Endpoint) -> None:
    """The last case has the address of one of the forged sources, which was heard a moment ago."""
    _, b = connected()
    b.engine.set_cookie_secret(SECRET, COOKIE_LIFETIME + b.now)
    flood(b)
    b.network(handshake_message(), Endpoint("203.0.113.1", 7))
    assert b.drops() == {DropReason.HANDSHAKE_QUEUE_FULL: 1}
    proven = initiation_with_cookie(endpoint)
    b.network(proven, endpoint)
    first, *others = handshakes(b)
    assert (first.data, first.endpoint) == (proven, endpoint)
    assert len(others) == MAX_QUEUED_HANDSHAKES
    assert first.queue_depth == MAX_QUEUED_HANDSHAKES


def test_a_cookie_of_another_address_port_secret_or_time_proves_nothing() -> None:
    _, b = connected()
    b.engine.set_cookie_secret(SECRET, b.now)
    flood(b)
    proven = initiation_with_cookie(A_OUTER)
    b.network(proven, Endpoint(A_OUTER.host, A_OUTER.port + 1))
    b.network(proven, Endpoint("192.0.2.99", A_OUTER.port))
    b.network(initiation_with_cookie(A_OUTER, bytes(32)), A_OUTER)
    b.now += 1
    b.network(proven, A_OUTER)
    b.engine.set_cookie_secret(None, 0)
    b.network(proven, A_OUTER)
    assert all(report.data != proven for report in handshakes(b))
    assert sum(b.drops().values()) == 5


def test_one_source_with_a_cookie_gets_the_rate_of_an_honest_peer() -> None:
    """A cookie proves an address, not good intentions: a flood that has one leaves the queue to others that have."""
    _, b = connected()
    b.engine.set_cookie_secret(SECRET, COOKIE_LIFETIME + b.now)
    flood(b)
    greedy, honest = Endpoint("203.0.113.9", 7), Endpoint("203.0.113.10", 7)
    for _ in range(2 * MAX_QUEUED_HANDSHAKES):
        b.network(initiation_with_cookie(greedy), greedy)
    b.network(initiation_with_cookie(honest), honest)
    assert [report.endpoint for report in handshakes(b)[:7]] == [greedy] * 5 + [honest, outer(0)]
    b.now += SECOND
    b.network(initiation_with_cookie(greedy), greedy)
    assert handshakes(b)[0].endpoint == greedy


def test_a_closed_engine_forgets_secrets_and_initiations() -> None:
    _, b = connected()
    b.engine.set_cookie_secret(bytearray(SECRET), COOKIE_LIFETIME + b.now)
    b.engine.begin_initiation(INDEX)
    b.engine.close()
    b.engine.begin_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.engine.set_cookie_secret(SECRET, 0)
    assert b.engine.poll_reports() == []


@pytest.mark.portable_only
def test_the_secret_of_a_cookie_reply_reaches_the_engine_and_ends_with_the_private_key() -> None:
    """The protocol's half: what its own cookie reply taught an honest peer passes the engine's full queue."""
    _, b = connected()
    exchange = Exchange(PeerStore(), lambda size: bytes(range(size)), lambda: 0, b.engine)
    exchange.set_private_key(PrivateKey(b"\x08" * 32))
    assert exchange.checker is not None and exchange.private_key is not None
    b.engine.set_mac1_key(exchange.checker.mac1_key)
    sender = CookieGenerator(exchange.private_key.public_key())
    body = b"\1\0\0\0" + bytes(112)
    first = HandshakeDatagram(sender.add_macs(body, 0), A_OUTER, None, UNDER_LOAD_QUEUE_DEPTH)
    reply = exchange.consume(first, b.now)
    assert isinstance(reply, Reply)
    assert sender.consume_reply(CookieReply.parse(reply.datagram), 0)
    stranger, proven = CookieGenerator(exchange.private_key.public_key()).add_macs(body, 0), sender.add_macs(body, 0)
    for number in range(MAX_QUEUED_HANDSHAKES):
        b.network(stranger, outer(number))
    b.network(proven, A_OUTER)
    assert handshakes(b)[0].data == proven
    exchange.set_private_key(PrivateKey(b"\x09" * 32))
    for message in (stranger, proven):
        b.network(message, Endpoint("203.0.113.77", 7) if message is stranger else A_OUTER)
    assert [report.data for report in handshakes(b)] == [stranger, proven], "in their order: neither proves anything"
