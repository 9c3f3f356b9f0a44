"""Admission of handshake messages: each type has its own first check, which decides whether and where it is queued."""

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
    """Return the initiation that an honest peer sends after it received our cookie reply."""
    sender = CookieGenerator(OUR_KEY)
    first = sender.add_macs(b"\1\0\0\0" + bytes(112), now)
    checker = CookieChecker(OUR_KEY, lambda size: secret[:size])
    assert sender.consume_reply(CookieReply.parse(checker.create_reply(first, 0, endpoint, now)), now)
    return sender.add_macs(b"\1\0\0\0" + bytes(112), now)


def handshakes(side: Side) -> list[HandshakeDatagram]:
    return [report for report in side.reports() if isinstance(report, HandshakeDatagram)]


def flood(side: Side, count: int = MAX_QUEUED_HANDSHAKES) -> None:
    """Send initiations with a valid mac1, each from a new address."""
    for number in range(count):
        side.network(handshake_message(), outer(number))


def test_an_unsolicited_cookie_reply_is_dropped() -> None:
    _, b = connected()
    b.network(cookie_reply(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1}
    assert handshakes(b) == []


def test_few_cookie_replies_are_accepted_per_initiation() -> None:
    """An observer of the initiation can forge a cookie reply, which must not crowd out the genuine one."""
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.network(cookie_reply(INDEX + 1), A_OUTER)
    few = REPLIES_PER_INITIATION[3]
    for _ in range(few + 5):
        b.network(cookie_reply(), A_OUTER)
    assert [report.data for report in handshakes(b)] == [cookie_reply()] * few
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 6}


def test_replies_to_an_ended_initiation_are_dropped() -> None:
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.network(cookie_reply(), A_OUTER)
    b.network(response(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1, DropReason.UNEXPECTED_RESPONSE: 1}


def test_an_unsolicited_response_is_dropped() -> None:
    _, b = connected()
    b.network(response(), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_RESPONSE: 1}
    assert handshakes(b) == []


def test_replies_to_the_index_of_a_session_are_dropped() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    index = int.from_bytes(a.take()[-1][4:8], "little")
    b.network(cookie_reply(index), A_OUTER)
    b.network(response(index), A_OUTER)
    assert b.drops() == {DropReason.UNEXPECTED_COOKIE: 1, DropReason.UNEXPECTED_RESPONSE: 1}


def test_a_forged_response_does_not_crowd_out_the_real_one() -> None:
    """An observer of our initiation knows its index. The first response uses up only the priority slot."""
    _, b = connected()
    b.engine.begin_initiation(INDEX)
    b.network(response(filling=1), outer(1))
    b.network(response(), A_OUTER)
    assert [report.data for report in handshakes(b)] == [response(filling=1), response()]


def test_stray_replies_do_not_count_as_load_or_mark_sources() -> None:
    _, b = connected()
    for _ in range(4 * MAX_QUEUED_HANDSHAKES):
        b.network(cookie_reply(), A_OUTER)
        b.network(response(), A_OUTER)
    flood(b, UNDER_LOAD_QUEUE_DEPTH)
    b.network(handshake_message(), A_OUTER)
    taken = handshakes(b)
    assert taken[-1].endpoint == A_OUTER
    assert taken[0].queue_depth == UNDER_LOAD_QUEUE_DEPTH


def test_expected_replies_pass_a_full_queue_and_are_not_load() -> None:
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
    """The last case uses the address of a forged source that has just sent an initiation."""
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


def test_a_cookie_is_valid_for_one_address_secret_and_time() -> None:
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


def test_a_source_with_a_cookie_is_rate_limited() -> None:
    """A cookie proves only an address: a flooder with one must not crowd out other sources with cookies."""
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


def test_close_forgets_secrets_and_initiations() -> None:
    _, b = connected()
    b.engine.set_cookie_secret(bytearray(SECRET), COOKIE_LIFETIME + b.now)
    b.engine.begin_initiation(INDEX)
    b.engine.close()
    b.engine.begin_initiation(INDEX)
    b.engine.end_initiation(INDEX)
    b.engine.set_cookie_secret(SECRET, 0)
    assert b.engine.poll_reports() == []


@pytest.mark.portable_only
def test_the_engine_uses_the_cookie_secret_of_the_exchange() -> None:
    """A peer with a cookie from the protocol passes the engine's full queue, until the private key changes."""
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
    assert [report.data for report in handshakes(b)] == [stranger, proven], (
        "in order of arrival: neither has a valid cookie"
    )
