"""Reports of refused datagrams, and drop counters per peer: the same on each engine."""

from __future__ import annotations

import pytest

from tests.support.packets import ipv4
from tests.support.sides import A_INNER, A_OUTER, B_INNER, OUR_KEY, Side, carry, connected, params, sides
from wyrmhole.datapath.refusals import BURST, INTERVAL
from wyrmhole.net.bind import SendOutcome
from wyrmhole.protocol.constants import MAX_STAGED_PACKETS, SECOND
from wyrmhole.protocol.cookie import CookieGenerator
from wyrmhole.protocol.data_plane import Refused
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

INITIATION = b"\1\0\0\0" + bytes(144)
STRANGER = Endpoint("198.51.100.7", 7)


def refusals(side: Side) -> list[Refused]:
    return [report for report in side.reports() if isinstance(report, Refused)]


def with_mac1(kind: int, length: int) -> bytes:
    covered = bytes((kind, 0, 0, 0)) + bytes(length - 32 - 4)
    return CookieGenerator(OUR_KEY).add_macs(covered, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (INITIATION, DropReason.BAD_MAC1),
        (b"\2\0\0\0" + bytes(88), DropReason.BAD_MAC1),
        (with_mac1(2, 92), DropReason.UNEXPECTED_RESPONSE),
        (b"\3\0\0\0" + bytes(60), DropReason.UNEXPECTED_COOKIE),
        (b"", DropReason.TOO_SHORT),
        (b"\1", DropReason.TOO_SHORT),
        (b"\5\0\0\0" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\1\0\0\0" + bytes(145), DropReason.WRONG_LENGTH),
    ],
)
def test_a_refused_message_is_reported_with_its_source(data: bytes, reason: DropReason) -> None:
    _, b = connected()
    b.engine.report_refusals(True)
    b.network(data, STRANGER)
    assert b.drops() == {reason: 1}
    assert refusals(b) == [Refused(reason, STRANGER)]
    assert b.engine.peer_drops(1) == {}


def test_without_a_private_key_a_handshake_is_refused_and_reported() -> None:
    _, b = sides()
    b.engine.set_mac1_key(None)
    b.engine.report_refusals(True)
    b.network(INITIATION, STRANGER)
    assert refusals(b) == [Refused(DropReason.NO_PRIVATE_KEY, STRANGER)]


def test_refusals_are_reported_only_on_request() -> None:
    _, b = connected()
    b.network(INITIATION, STRANGER)
    assert refusals(b) == []
    b.engine.report_refusals(True)
    b.network(INITIATION, STRANGER)
    assert len(refusals(b)) == 1
    b.engine.report_refusals(False)
    b.network(INITIATION, STRANGER)
    assert refusals(b) == []
    assert b.drops() == {DropReason.BAD_MAC1: 3}


def test_reports_of_a_flood_are_rate_limited_for_all_sources() -> None:
    _, b = connected()
    b.engine.report_refusals(True)
    for number in range(100):
        b.network(INITIATION, Endpoint(f"198.51.100.{number}", 7))
    assert len(refusals(b)) == BURST
    b.now += INTERVAL
    for _ in range(100):
        b.network(INITIATION, STRANGER)
    assert len(refusals(b)) == 1
    b.now += 100 * SECOND
    for _ in range(100):
        b.network(INITIATION, STRANGER)
    assert len(refusals(b)) == BURST
    assert b.drops() == {DropReason.BAD_MAC1: 300}


def test_a_foreign_inner_source_is_reported_with_its_peer() -> None:
    a, b = connected()
    b.engine.report_refusals(True)
    a.tunnel(ipv4("10.9.0.1", B_INNER))
    carry(a, b)
    assert refusals(b) == [Refused(DropReason.BAD_SOURCE, A_OUTER, 1, bytes((10, 9, 0, 1)))]
    assert b.engine.peer_drops(1) == {DropReason.BAD_SOURCE: 1}


def test_an_inner_ipv6_source_is_reported_with_16_bytes() -> None:
    a, b = connected()
    b.engine.report_refusals(True)
    for side in (a, b):
        side.engine.insert_allowed_ip(1, Prefix.parse("fd00::2/128"))
    source = bytes.fromhex("fd00000000000000000000000000ffff")
    destination = bytes.fromhex("fd000000000000000000000000000002")
    packet = bytes((0x60, 0, 0, 0, 0, 4, 253, 64)) + source + destination + b"data"
    a.tunnel(packet)
    carry(a, b)
    (refused,) = refusals(b)
    assert refused.inner_source == source and refused.peer == 1


def test_unknown_senders_cannot_hide_a_peer_s_refusals() -> None:
    a, b = connected()
    b.engine.report_refusals(True)
    for _ in range(100):
        b.network(INITIATION, STRANGER)
    a.tunnel(ipv4("10.9.0.1", B_INNER))
    carry(a, b)
    assert [report.reason for report in refusals(b)] == [*[DropReason.BAD_MAC1] * BURST, DropReason.BAD_SOURCE]


# Drop counters per peer


def test_replayed_and_altered_packets_are_counted_for_their_peer() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    (datagram,) = a.take()
    b.network(datagram, A_OUTER)
    b.network(datagram, A_OUTER)
    b.network(datagram[:-1] + bytes((datagram[-1] ^ 1,)), STRANGER)
    wanted = {DropReason.REPLAYED: 1, DropReason.BAD_TAG: 1}
    assert b.engine.peer_drops(1) == wanted == b.drops()


def test_a_train_under_an_expired_key_is_counted_for_its_peer() -> None:
    a, b = connected()
    a.tunnel(*[ipv4(A_INNER, B_INNER)] * 3)
    datagrams = a.take()
    b.now += 180 * SECOND
    b.network(b"".join(datagrams), A_OUTER, segment=len(datagrams[0]))
    assert b.engine.peer_drops(1) == {DropReason.KEY_EXPIRED: 3} == b.drops()


def test_dropped_staged_packets_are_counted_for_their_peer() -> None:
    a, _ = sides()
    for _ in range(MAX_STAGED_PACKETS + 2):
        a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.engine.peer_drops(1) == {DropReason.STAGING_FULL: 2}
    a.engine.flush_staged(1)
    wanted = {DropReason.STAGING_FULL: 2, DropReason.HANDSHAKE_GAVE_UP: MAX_STAGED_PACKETS}
    assert a.engine.peer_drops(1) == wanted == a.drops()


def test_failed_sends_are_counted_for_their_peer() -> None:
    a, _ = connected()
    a.bind.outcome = SendOutcome.DROPPED
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.engine.peer_drops(1) == {DropReason.SEND_FAILED: 1}
    a.engine.set_endpoint(1, None)
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.send_to_peer(1, b"handshake")
    wanted = {DropReason.SEND_FAILED: 1, DropReason.NO_ENDPOINT: 2}
    assert a.engine.peer_drops(1) == wanted == a.drops()


def test_each_peer_has_its_own_counters() -> None:
    a, _ = connected()
    a.engine.add_peer(2)
    a.engine.insert_allowed_ip(2, Prefix.parse("10.0.0.9/32"))
    a.tunnel(ipv4(A_INNER, "10.0.0.9"), ipv4(A_INNER, "10.0.0.8"))
    assert a.engine.peer_drops(1) == {}
    assert a.engine.peer_drops(2) == {DropReason.NO_ENDPOINT: 1}
    assert a.drops() == {DropReason.NO_ENDPOINT: 1, DropReason.NO_ROUTE: 1}
    a.engine.remove_peer(2)
    assert a.engine.peer_drops(2) == {} == a.engine.peer_drops(3)


def test_a_new_session_keeps_the_counters() -> None:
    a, b = connected()
    a.tunnel(ipv4("10.9.0.1", B_INNER))
    carry(a, b)
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    assert b.engine.peer_drops(1) == {DropReason.BAD_SOURCE: 1}
