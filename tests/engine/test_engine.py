"""The engine's own rules, scenario by scenario: two engines with keys given to them, frames and datagrams as lists."""

from __future__ import annotations

import select
import struct
import threading
from dataclasses import replace

import pytest

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import index_count, kind, make_engine
from tests.support.packets import Packet, address_bytes, ipv4, ipv6, udp, uso
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    Side,
    carry,
    connected,
    handshake_message,
    outer,
    params,
    sides,
    thread_names,
)
from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.engine.contract import TunChanged
from wyrmhole.net.bind import SendOutcome
from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.protocol.constants import (
    MAX_QUEUED_HANDSHAKES,
    MAX_STAGED_BYTES,
    SECOND,
    UNDER_LOAD_QUEUE_DEPTH,
)
from wyrmhole.protocol.data_plane import (
    Active,
    HandshakeDatagram,
    KeyConfirmed,
    KeypairsDropped,
    KeyWanted,
    Roamed,
)
from wyrmhole.protocol.drops import DropReason, Oddity
from wyrmhole.wire import ip
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.prefix import Prefix

# Out


def test_a_packet_arrives_as_it_was() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER)]


def test_transport_messages_have_header_counter_and_padding() -> None:
    """M7, M20, M22: counters from 0 (the keepalive), multiples of 16."""
    a, _ = connected()
    for size in range(40):
        a.tunnel(ipv4(A_INNER, B_INNER, bytes(size)))
    datagrams = a.take()
    assert [struct.unpack_from("<IIQ", data) for data in datagrams] == [(4, 20, 1 + number) for number in range(40)]
    assert all(len(data) % 16 == 0 for data in datagrams)
    assert [len(data) for data in datagrams] == [32 + -(-(20 + size) // 16) * 16 for size in range(40)]


@pytest.mark.parametrize(("mtu", "size", "padded"), [(1420, 1420, 1420), (1420, 1419, 1420), (1420, 1401, 1408)])
def test_padding_never_goes_beyond_the_mtu(mtu: int, size: int, padded: int) -> None:
    """M22."""
    a, _ = connected()
    a.engine.set_mtu(mtu)
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(size - 20)))
    assert len(a.take()[0]) == padded + 32


def test_a_packet_above_the_mtu_is_padded_by_its_remainder() -> None:
    """M22: a change of the MTU that nobody told us of."""
    a, _ = connected()
    a.engine.set_mtu(1300)
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(1330)))
    assert len(a.take()[0]) == 1350 + 14 + 32


def test_small_packets_read_together_leave_in_one_send() -> None:
    a, b = connected()
    a.engine.note_handshake(1, 92, a.now)
    a.tunnel(ipv4(A_INNER, B_INNER, b"first"))
    packets = [ipv4(A_INNER, B_INNER, b"%03d" % number) for number in range(30)]
    a.tunnel(*packets)
    a.bind.trains.clear()
    a.take()
    a.tunnel(*packets)
    assert len(a.bind.trains) == 1
    carry(a, b)
    assert b.delivered == packets


def test_a_shorter_packet_closes_a_train_and_a_longer_begins_one() -> None:
    """The shape that UDP segmentation sends: equal sizes, the last one maybe shorter; order kept."""
    a, b = connected()
    a.engine.note_handshake(1, 92, a.now)
    sizes = [100, 100, 50, 100, 400, 400, 30, 30, 30]
    packets = [ipv4(A_INNER, B_INNER, bytes([number]) * size) for number, size in enumerate(sizes)]
    a.tunnel(*packets)
    a.tunnel(*packets)
    carry(a, b)
    assert b.delivered == packets * 2
    assert any(segment for _, segment in a.bind.trains)
    for total, segment in a.bind.trains:
        assert not segment or total > segment


def test_no_train_has_more_than_64_datagrams_or_65507_bytes() -> None:
    a, _ = connected()
    a.engine.note_handshake(1, 92, a.now)
    for size in (1, 400, 1400):
        packets = [ipv4(A_INNER, B_INNER, bytes(size))] * 60
        for _ in range(4):
            a.tunnel(*packets)
    assert any(segment for _, segment in a.bind.trains)
    for total, segment in a.bind.trains:
        assert total <= 65_507
        assert not segment or -(-total // segment) <= 64


def test_packets_of_two_peers_read_together_go_to_each_in_one_train() -> None:
    a, _ = connected()
    a.engine.add_peer(2)
    a.engine.insert_allowed_ip(2, Prefix.parse("10.0.0.3/32"))
    a.engine.set_endpoint(2, Endpoint("2001:db8::3", 3))
    a.engine.install_keypair(2, params(11, 30, initiator=True))
    for peer in (1, 2):
        a.engine.note_handshake(peer, 92, a.now)
    packets = [ipv4(A_INNER, to, b"x") for to in (B_INNER, "10.0.0.3")]
    a.tunnel(*packets)
    a.sent.clear()
    a.bind.trains.clear()
    a.tunnel(*packets * 3)
    assert sorted(sockaddr[0] for sockaddr, _, _, _ in a.sent) == ["192.0.2.2"] * 3 + ["2001:db8::3"] * 3
    assert len(a.bind.trains) == 2


def test_ecn_goes_outside_and_the_rest_of_tos_does_not() -> None:
    """M48: RFC 6040, and no DSCP."""
    a, _ = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, tos=0xB8 | 2))
    assert a.sent[-1][3] == 2


def test_handshake_messages_are_marked_af41() -> None:
    """M48."""
    a, _ = connected()
    a.engine.send_to_peer(1, b"handshake")
    assert a.sent[-1][1:] == (b"handshake", None, 0x88)


def test_cookie_replies_are_not_marked() -> None:
    """Whoever floods asks for them; like the kernel's."""
    a, _ = connected()
    a.engine.send_to(A_OUTER, b"here", b"cookie reply")
    assert a.sent[-1] == (A_OUTER.sockaddr, b"cookie reply", b"here", 0)


# Out: drops


def test_no_peer_for_the_destination_is_told_to_the_sender() -> None:
    """M46."""
    a, _ = connected()
    a.tunnel(ipv4(A_INNER, "10.9.9.9"))
    assert a.drops() == {DropReason.NO_ROUTE: 1}
    (error,) = a.delivered
    assert error[9] == 1
    assert error[20:22] == bytes((3, 1))
    assert (error[12:16], error[16:20]) == (address_bytes("10.9.9.9"), address_bytes(A_INNER))
    assert ipv4(A_INNER, "10.9.9.9").startswith(error[28:48])
    assert checksum(error[:20]) == 0
    assert checksum(error[20:]) == 0


def test_a_peer_without_endpoint_is_told_to_the_sender_and_wants_no_key() -> None:
    """M46."""
    a, _ = sides()
    a.engine.set_endpoint(1, None)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops() == {DropReason.NO_ENDPOINT: 1}
    assert len(a.delivered) == 1
    assert a.reports() == []


def test_icmp_errors_are_rate_limited_and_never_answer_errors() -> None:
    a, _ = connected()
    a.tunnel(*[ipv4(A_INNER, "10.9.9.9")] * 60)
    assert 0 < len(a.delivered) <= 20
    a.now += 10 * SECOND
    a.tunnel(ipv4(A_INNER, "10.9.9.9", bytes((3, 1, 0, 0)), protocol=1))
    assert a.delivered == []


def test_without_a_private_key_nothing_is_staged() -> None:
    a, _ = sides()
    a.engine.set_mac1_key(None)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops() == {DropReason.NO_PRIVATE_KEY: 1}
    assert a.reports() == []


@pytest.mark.parametrize("frame", [b"", b"\x45", b"\x45" * 19, b"\x60" * 39, b"\x00" * 40, b"\x50" + bytes(40)])
def test_what_is_no_ip_packet_is_dropped_by_name(frame: bytes) -> None:
    a, _ = connected()
    a.tunnel(frame)
    assert a.drops() == {DropReason.MALFORMED_FRAME: 1}


@pytest.mark.parametrize(
    "header",
    [
        (1, 1, 40, 0, 20, 16),
        (1, 1, 40, 100, 9000, 16),
        (1, 4, 40, 100, 20, 16),
        (1, 3, 40, 100, 20, 16),
        (1, 0, 0, 0, 60000, 16),
    ],
    ids=["no size", "csum_start beyond", "wrong version", "unknown type", "partial checksum beyond"],
)
def test_an_odd_virtio_header_costs_one_frame(header: tuple[int, ...]) -> None:
    """B36: wireguard-go ends the device over any other error than too many segments."""
    a, b = connected()
    a.tun.inject(struct.pack("=BBHHHH", *header) + ipv4(A_INNER, B_INNER, bytes(400), protocol=6))
    a.engine.turn()
    assert a.drops() == {DropReason.MALFORMED_FRAME: 1}
    a.tunnel(ipv4(A_INNER, B_INNER, b"next"))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"next")]


def test_our_own_datagram_routed_into_the_tunnel_is_dropped() -> None:
    """B37: a route loop; in wireguard-go it takes 1.7 CPUs without end."""
    a, _ = connected()
    a.engine.insert_allowed_ip(1, Prefix.parse("0.0.0.0/0"))
    a.tunnel(udp("192.0.2.1", B_OUTER.host, (51820, B_OUTER.port)))
    assert a.take() == []
    assert a.drops() == {DropReason.ROUTE_LOOP: 1}
    a.tunnel(udp("192.0.2.1", B_OUTER.host, (5353, B_OUTER.port)), udp(A_INNER, "192.0.2.9", (51820, B_OUTER.port)))
    assert len(a.take()) == 2


def test_a_failed_send_is_counted_and_a_rejected_source_forgotten() -> None:
    """B44."""
    a, _ = connected()
    a.engine.set_endpoint(1, B_OUTER, b"pinned")
    a.bind.outcome = SendOutcome.SOURCE_REJECTED
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.bind.outcome = SendOutcome.DROPPED
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert [source for _, _, source, _ in a.sent[-2:]] == [b"pinned", None]
    assert a.drops() == {DropReason.SEND_FAILED: 1}


# Staging


def test_staged_packets_leave_in_order_when_the_key_comes() -> None:
    """M49, and a key is asked for once."""
    a, b = sides()
    packets = [ipv4(A_INNER, B_INNER, b"%d" % number) for number in range(5)]
    for packet in packets:
        a.tunnel(packet)
    assert a.reports() == [KeyWanted(1)]
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert b.delivered == packets


def test_the_oldest_of_128_gives_way() -> None:
    """M49, I17."""
    a, b = sides()
    for number in range(130):
        a.tunnel(ipv4(A_INNER, B_INNER, b"%d" % number))
    assert a.drops() == {DropReason.STAGING_FULL: 2}
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"%d" % number) for number in range(2, 130)]


STAGED_SIZE = 20 + 1380


def silent_peers(a: Side, count: int) -> list[str]:
    """Peers that never answer, numbers 2 and up; returns an inner address of each."""
    addresses = []
    for number in range(2, count + 2):
        a.engine.add_peer(number)
        a.engine.insert_allowed_ip(number, Prefix(4, 0x0B000000 + number, 32))
        a.engine.set_endpoint(number, B_OUTER)
        addresses.append(".".join(map(str, (0x0B000000 + number).to_bytes(4, "big"))))
    return addresses


def staged(a: Side, number: int) -> int:
    """How many packets wait for the peer; afterwards none does."""
    before = a.drops().get(DropReason.HANDSHAKE_GAVE_UP, 0)
    a.engine.flush_staged(number)
    return a.drops().get(DropReason.HANDSHAKE_GAVE_UP, 0) - before


def test_staged_bytes_of_a_device_are_capped() -> None:
    """I17: memory is bounded however many peers do not answer, and a burst for each of a hundred leaves room."""
    a, _ = sides()
    addresses = silent_peers(a, 100)
    for inner in addresses:
        for _ in range(2):
            a.tunnel(*[ipv4(A_INNER, inner, bytes(1380))] * 64)
            a.engine.turn()
    assert a.drops()[DropReason.STAGING_CAP] > 0
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert staged(a, 1) == 1
    counts = [staged(a, number) for number in range(2, 102)]
    assert counts[:80] == [128] * 80
    assert sum(counts) * STAGED_SIZE <= MAX_STAGED_BYTES
    capped = a.drops()[DropReason.STAGING_CAP]
    for address in addresses:
        a.tunnel(ipv4(A_INNER, address, bytes(1380)))
    assert a.drops()[DropReason.STAGING_CAP] == capped, "what was flushed makes room"


def test_silent_peers_with_steady_traffic_leave_room_for_the_first_packets_of_another() -> None:
    """I17: they share what there is, whoever came first; 92 of them once used all of it up."""
    a, b = sides()
    addresses = silent_peers(a, 200)
    for _ in range(130):
        for start in range(0, len(addresses), 50):
            a.tunnel(*[ipv4(A_INNER, address, bytes(1380)) for address in addresses[start : start + 50]])
            while a.tun.to_read:
                a.engine.turn()
    first = [ipv4(A_INNER, B_INNER, bytes(1380 - number)) for number in range(10)]
    for packet in first:
        a.tunnel(packet)
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert b.delivered == first
    counts = [staged(a, number) for number in range(2, 202)]
    assert max(counts) - min(counts) <= 2
    assert 0.9 * MAX_STAGED_BYTES < sum(counts) * STAGED_SIZE <= MAX_STAGED_BYTES


def test_giving_up_drops_by_name_and_asks_again_for_the_next_packet() -> None:
    """M32, L5."""
    a, _ = sides()
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.flush_staged(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [KeyWanted(1), KeyWanted(1)]
    assert a.drops() == {DropReason.HANDSHAKE_GAVE_UP: 1}


def test_a_removed_peer_s_packets_and_keys_are_gone() -> None:
    """B80, L10."""
    a, b = connected()
    b.tunnel(ipv4(B_INNER, A_INNER))
    late = b.take()
    a.engine.remove_peer(1)
    a.network(late[0], B_OUTER)
    assert a.delivered == []
    assert a.drops() == {DropReason.UNKNOWN_INDEX: 1}
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops()[DropReason.NO_ROUTE] == 1


# Keys


def test_responder_holds_its_packets_until_the_first_packet_of_the_initiator() -> None:
    """M18, I8."""
    a, b = sides()
    b.tunnel(ipv4(B_INNER, A_INNER, b"early"))
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    b.tunnel(ipv4(B_INNER, A_INNER, b"still early"))
    assert b.take() == []
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert KeyConfirmed(1, 20) in b.reports()
    for datagram in b.take():
        a.network(datagram, B_OUTER)
    assert a.delivered == [ipv4(B_INNER, A_INNER, b"early"), ipv4(B_INNER, A_INNER, b"still early")]


def test_the_initiator_confirms_with_a_keepalive_when_nothing_is_staged() -> None:
    """M19."""
    a, _ = sides()
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    assert [len(data) for data in a.take()] == [32]


def test_reordering_across_a_rekey_loses_nothing() -> None:
    """M36, I15: previous, current and next all open."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"old"))
    old = a.take()
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    a.tunnel(ipv4(A_INNER, B_INNER, b"new"))
    new = a.take()
    for datagram in [*new, *old]:
        b.network(datagram, A_OUTER)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"new"), ipv4(A_INNER, B_INNER, b"old")]
    a.engine.install_keypair(1, params(12, 22, initiator=True))
    assert KeypairsDropped(1, (10,)) in a.reports()


def test_keys_end_for_sending_and_receiving_at_their_times() -> None:
    """M29."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"one"))
    a.now += 178 * SECOND
    a.tunnel(ipv4(A_INNER, B_INNER, b"two"))
    a.now += SECOND
    a.tunnel(ipv4(A_INNER, B_INNER, b"three"))
    one, two = a.take()
    b.now += 180 * SECOND - 1
    b.network(two, A_OUTER)
    b.now += 1
    b.network(one, A_OUTER)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"two")]
    assert b.drops() == {DropReason.KEY_EXPIRED: 1}


def test_the_message_limit_holds_for_sending() -> None:
    """M25, M26: the last counter is used once, what does not fit waits, and a rekey was asked for."""
    a, b = sides()
    limited = replace(params(10, 20, initiator=True), rekey_after_messages=3, reject_after_messages=5)
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, limited)
    packets = [ipv4(A_INNER, B_INNER, b"%d" % number) for number in range(6)]
    for packet in packets:
        a.tunnel(packet)
    datagrams = a.take()
    assert [struct.unpack_from("<Q", data, 8)[0] for data in datagrams] == [0, 1, 2, 3, 4]
    assert [report for report in a.reports() if isinstance(report, KeyWanted)] == [KeyWanted(1, 10), KeyWanted(1)]
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    for datagram in [*datagrams, *a.take()]:
        b.network(datagram, A_OUTER)
    assert b.delivered[-2:] == packets[-2:]


def test_the_message_limit_holds_for_a_super_packet() -> None:
    """M25: the part of a batch beyond the limit is staged, in order."""
    a, b = sides()
    a.engine.install_keypair(1, replace(params(10, 20, initiator=True), reject_after_messages=3))
    a.take()
    a.tun.inject(uso(udp(A_INNER, B_INNER, (1, 2), b"0123"), 1))
    a.engine.turn()
    assert len(a.take()) == 2
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    carry(a, b)
    assert [packet[28:] for packet in b.delivered] == [b"2", b"3"]


def test_the_message_limit_holds_for_receiving() -> None:
    """M25, B25."""
    a, b = sides()
    b.engine.install_keypair(1, replace(params(20, 10, initiator=False), reject_after_messages=2))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    for number in range(3):
        a.tunnel(ipv4(A_INNER, B_INNER, b"%d" % number))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"0")]
    assert b.drops() == {DropReason.MESSAGE_LIMIT: 2}


def test_expired_sending_keys_still_receive() -> None:
    """M52."""
    a, b = connected()
    b.engine.expire_sending_keys(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert len(b.delivered) == 1
    b.tunnel(ipv4(B_INNER, A_INNER))
    assert b.take() == []
    assert KeyWanted(1) in b.reports()


def test_only_the_initiator_asks_to_rekey_once_per_key() -> None:
    """M27, M28."""
    a, b = connected()
    for side, inner in ((a, (A_INNER, B_INNER)), (b, (B_INNER, A_INNER))):
        side.now += 121 * SECOND
        side.tunnel(ipv4(*inner))
        side.tunnel(ipv4(*inner))
    assert a.reports().count(KeyWanted(1, renews=10)) == 1
    assert not any(isinstance(report, KeyWanted) for report in b.reports())


def test_keepalives_sent_ask_to_rekey_as_data_does() -> None:
    """M27: once for each key, and the initiator only."""
    a, b = connected()
    for side in (a, b):
        side.engine.send_keepalive(1)
        side.now += 120 * SECOND
        side.engine.send_keepalive(1)
        side.engine.send_keepalive(1)
    assert a.reports() == [KeyWanted(1, renews=10)]
    assert b.reports() == []


def test_keepalives_sent_count_as_messages() -> None:
    """M26."""
    a, _ = sides()
    a.engine.install_keypair(1, replace(params(10, 20, initiator=True), rekey_after_messages=3))
    for _ in range(2):
        a.engine.send_keepalive(1)
    assert a.reports() == []
    a.engine.send_keepalive(1)
    assert a.reports() == [KeyWanted(1, renews=10)]


@pytest.mark.parametrize("train", [1, 2])
def test_keepalives_received_ask_to_rekey_near_the_end(train: int) -> None:
    """M28: once, and the initiator only."""
    a, b = connected()
    a.now += 165 * SECOND
    for _ in range(3 * train):
        b.engine.send_keepalive(1)
    datagrams = b.take()
    for at in range(0, len(datagrams), train):
        a.network(b"".join(datagrams[at : at + train]), B_OUTER, segment=32 if train > 1 else 0)
    assert a.reports() == [KeyWanted(1, renews=10)]


@pytest.mark.parametrize("inner", [b"data", b""])
def test_a_late_message_of_the_previous_session_does_not_ask_to_renew_the_new_one(inner: bytes) -> None:
    """M28: the current session counts."""
    a, b = connected()
    if inner:
        b.tunnel(ipv4(B_INNER, A_INNER, inner))
    else:
        b.engine.send_keepalive(1)
    (late,) = b.take()
    a.now += 166 * SECOND
    a.engine.install_keypair(1, params(11, 21, initiator=True, birth=a.now))
    a.reports()
    a.network(late, B_OUTER)
    assert not any(isinstance(report, KeyWanted) for report in a.reports())


# In: drops


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (b"\4\0\0", DropReason.TOO_SHORT),
        (b"\4\0\0\0" + bytes(27), DropReason.WRONG_LENGTH),
        (b"\0" * 148, DropReason.UNKNOWN_TYPE),
        (b"\5\0\0\0" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\1\1\0\0" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\1\0\1\0" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\4\0\0\1" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\1\0\0\0" + bytes(143), DropReason.WRONG_LENGTH),
        (b"\1\0\0\0" + bytes(145), DropReason.WRONG_LENGTH),
        (b"\2\0\0\0" + bytes(87), DropReason.WRONG_LENGTH),
        (b"\2\0\0\0" + bytes(89), DropReason.WRONG_LENGTH),
        (b"\3\0\0\0" + bytes(59), DropReason.WRONG_LENGTH),
        (b"\3\0\0\0" + bytes(61), DropReason.WRONG_LENGTH),
        (b"\1\0\0\0" + bytes(65503), DropReason.WRONG_LENGTH),
        (b"\1\0\0\0" + bytes(144), DropReason.BAD_MAC1),
        (b"\2\0\0\0" + bytes(88), DropReason.BAD_MAC1),
        (b"\4\0\0\0" + bytes(28), DropReason.UNKNOWN_INDEX),
        (b"\4\0\0\0\x14\0\0\0" + bytes(24), DropReason.BAD_TAG),
        (b"\4\0\0\0\x14\0\0\0" + b"\xff" * 8 + bytes(65000), DropReason.BAD_TAG),
    ],
)
def test_bad_datagrams_are_dropped_by_name_and_answered_by_silence(data: bytes, reason: DropReason) -> None:
    """M4, M5, M6, M7, M8, M37, M50, B1, B2, B3, B6, B24, B25, B29."""
    _, b = connected()
    b.network(data, A_OUTER)
    assert b.drops() == {reason: 1}
    assert b.take() == []
    assert b.delivered == []
    assert b.reports() == []


@pytest.mark.parametrize("kind", [1, 2])
def test_handshake_messages_with_a_valid_mac1_are_reported(kind: int) -> None:
    """M37. A response also needs an initiation under way."""
    _, b = connected()
    b.engine.begin_initiation(0)
    b.network(handshake_message(kind), A_OUTER, source=b"here")
    assert b.reports() == [HandshakeDatagram(handshake_message(kind), A_OUTER, b"here", 0)]


def test_the_handshake_queue_is_bounded_tells_its_depth_and_comes_last() -> None:
    """M38, M50."""
    a, b = connected()
    for number in range(MAX_QUEUED_HANDSHAKES + 3):
        b.network(handshake_message(), outer(number))
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert b.drops() == {DropReason.HANDSHAKE_QUEUE_FULL: 3}
    first, *rest = b.reports()
    assert first == Active(1)
    depths = [report.queue_depth for report in rest if isinstance(report, HandshakeDatagram)]
    assert depths == list(reversed(range(MAX_QUEUED_HANDSHAKES)))


@pytest.mark.parametrize("is_v6", [False, True])
def test_under_load_who_was_silent_before_goes_first(is_v6: bool) -> None:
    """B8, B10: one source, or one /64, gets a place in the queue and then none, and leaves room for others."""
    _, b = connected()
    flood = [Endpoint(f"2001:db8::{number:x}" if is_v6 else "198.51.100.1", 7) for number in range(1, 2001)]
    for source in flood:
        b.network(handshake_message(), source)
    b.network(handshake_message(), A_OUTER)
    b.network(handshake_message(), A_OUTER)
    assert b.drops() == {DropReason.RATE_LIMITED: 2000 - UNDER_LOAD_QUEUE_DEPTH}
    sources = [report.endpoint for report in b.reports() if isinstance(report, HandshakeDatagram)]
    assert sources == [*flood[: UNDER_LOAD_QUEUE_DEPTH + 1], A_OUTER]


def test_without_a_private_key_handshakes_are_dropped() -> None:
    _, b = connected()
    b.engine.set_mac1_key(None)
    b.network(handshake_message(), A_OUTER)
    assert b.drops() == {DropReason.NO_PRIVATE_KEY: 1}


def test_a_duplicate_is_delivered_once() -> None:
    """B26, I3."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    (datagram,) = a.take()
    b.network(datagram, A_OUTER)
    b.network(datagram, A_OUTER)
    assert len(b.delivered) == 1
    assert b.drops() == {DropReason.REPLAYED: 1}


def test_a_forged_counter_does_not_move_the_window() -> None:
    """M23, I9, I12: a million ahead with a bad tag, then the true packets."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"1"))
    a.tunnel(ipv4(A_INNER, B_INNER, b"2"))
    one, two = a.take()
    forged = one[:8] + (1_000_000).to_bytes(8, "little") + one[16:]
    for datagram in (forged, two, one):
        b.network(datagram, A_OUTER)
    assert len(b.delivered) == 2
    assert b.drops() == {DropReason.BAD_TAG: 1}


def test_a_forged_packet_changes_nothing() -> None:
    """I11, I12: no endpoint, no mark, no counter."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    (datagram,) = a.take()
    before = (b.engine.marks(1), b.engine.counters(1))
    b.network(datagram[:-1] + bytes((datagram[-1] ^ 1,)), Endpoint("203.0.113.9", 9))
    assert (b.engine.marks(1), b.engine.counters(1)) == before
    assert b.reports() == []


@pytest.mark.parametrize(
    "inner",
    [
        b"\x45",
        b"\x05" * 40,
        b"\x75" + bytes(60),
        b"\x45\x00\x00\x10" + ipv4(A_INNER, B_INNER)[4:],
        b"\x45\x00\x02\x00" + ipv4(A_INNER, B_INNER)[4:],
        b"\x44" + ipv4(A_INNER, B_INNER)[1:],
        b"\x60\x00\x00\x00\xff\xf8" + bytes(50),
        b"\x60" + bytes(38),
    ],
    ids=["one byte", "version 0", "version 7", "v4 length 16", "v4 beyond", "v4 header 16", "v6 wraps", "short v6"],
)
def test_authenticated_nonsense_is_dropped_and_still_roams(inner: bytes) -> None:
    """M47, M44, B31, B32: an IPv6 length of 65,528 wraps in wireguard-go and delivers a fragment."""
    _, b = connected()
    nonce = bytes(4) + (7).to_bytes(8, "little")
    sealed = bytearray(struct.pack("<IIQ", 4, 20, 7) + bytes(len(inner) + 16))
    TransportCipher(params(10, 20, initiator=True).send_key).seal(nonce, inner, None, memoryview(sealed)[16:])
    b.network(bytes(sealed), Endpoint("203.0.113.9", 9))
    assert b.delivered == []
    assert b.drops() == {DropReason.NOT_IP: 1}
    assert Roamed(1, Endpoint("203.0.113.9", 9)) in b.reports()


def test_padding_is_trimmed_by_the_inner_length() -> None:
    """M47."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"odd"))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"odd")]


def test_the_inner_source_must_belong_to_the_peer_by_the_whole_table() -> None:
    """M45, B33: a /32 of another peer inside this peer's /24."""
    a, b = connected()
    b.engine.insert_allowed_ip(1, Prefix.parse("10.0.0.0/24"))
    b.engine.add_peer(2)
    b.engine.insert_allowed_ip(2, Prefix.parse("10.0.0.7/32"))
    a.tunnel(*[ipv4(source, B_INNER) for source in ("10.0.0.6", "10.0.0.7", "10.9.0.1", A_INNER)])
    carry(a, b)
    assert b.delivered == [ipv4("10.0.0.6", B_INNER), ipv4(A_INNER, B_INNER)]
    assert b.drops() == {DropReason.BAD_SOURCE: 2}


@pytest.mark.parametrize("outer_is_v6", [False, True])
@pytest.mark.parametrize("inner_is_v6", [False, True])
@pytest.mark.parametrize("is_train", [False, True])
def test_congestion_outside_goes_inside_where_it_can_be_carried(
    outer_is_v6: bool, inner_is_v6: bool, is_train: bool
) -> None:
    """M48, all 16 pairs: RFC 6040, figure 4, and like the kernel no drop. DSCP (here 0x40) stays."""
    a, b = connected()
    for side, prefix in ((a, "fd00::2/128"), (b, "fd00::1/128")):
        side.engine.insert_allowed_ip(1, Prefix.parse(prefix))
    sender = Endpoint("2001:db8::1", 51820) if outer_is_v6 else A_OUTER
    for outer_ecn in range(4):
        packets = [
            ipv6("fd00::1", "fd00::2", tos=0x40 | inner) if inner_is_v6 else ipv4(A_INNER, B_INNER, tos=0x40 | inner)
            for inner in range(4)
        ]
        for packet in packets:
            a.tunnel(packet)
        sealed = a.take()
        for data in [b"".join(sealed)] if is_train else sealed:
            b.bind.arrive(data, sender.sockaddr, segment=len(sealed[0]) if is_train else 0)
            b.bind.incoming[-1].tos = outer_ecn
            b.engine.turn()
        delivered = b.delivered
        seen = tuple(ip.ecn_of(packet) for packet in delivered)
        assert seen == ((0, 1, 2, 3), (0, 1, 1, 3), (0, 1, 2, 3), (0, 3, 3, 3))[outer_ecn]
        if inner_is_v6:
            assert all(packet[0] << 4 & 0xF0 | packet[1] >> 4 & 0xC == 0x40 for packet in delivered)
        else:
            assert all(packet[1] & 0xFC == 0x40 and checksum(packet[:20]) == 0 for packet in delivered)
    assert b.drops() == {}
    assert b.engine.oddities() == {Oddity.ECN_UNHEEDED: 1}


# In: trains


def test_a_train_is_opened_whole_and_a_bad_one_inside_costs_only_itself() -> None:
    """B4: sizes, a short tail, a corrupt datagram and a duplicate in one receive."""
    a, b = connected()
    packets = [ipv4(A_INNER, B_INNER, b"%03d" % number) for number in range(10)] + [ipv4(A_INNER, B_INNER, b"")]
    for packet in packets:
        a.tunnel(packet)
    datagrams = a.take()
    assert len({len(data) for data in datagrams}) == 1
    datagrams[4] = datagrams[4][:-1] + bytes((datagrams[4][-1] ^ 1,))
    datagrams[6] = datagrams[5]
    size = len(datagrams[0])
    b.network(b"".join(datagrams) + bytes(7), A_OUTER, segment=size)
    assert b.delivered == [packet for number, packet in enumerate(packets) if number not in (4, 6)]
    assert b.drops() == {DropReason.BAD_TAG: 1, DropReason.REPLAYED: 1, DropReason.UNKNOWN_TYPE: 1}


def test_a_train_may_change_its_key_in_the_middle_and_hold_a_handshake() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(96)))
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    a.sent.pop()
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(range(96))))
    first, second = a.take()
    size = len(first)
    message = handshake_message()
    assert size == len(second) > len(message)
    b.network(first + second + message, A_OUTER, segment=size)
    assert b.delivered == [ipv4(A_INNER, B_INNER, bytes(96)), ipv4(A_INNER, B_INNER, bytes(range(96)))]
    assert any(isinstance(report, HandshakeDatagram) for report in b.reports())


def test_a_refused_super_packet_is_written_packet_by_packet() -> None:
    """A kernel that accepts the offload and then refuses the write loses nothing."""
    a = Side(B_INNER, B_OUTER)
    b = Side(A_INNER, A_OUTER, offloads=TunOffloads(tso=True, uso=True))
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    a_inner, b_inner = (int.from_bytes(address_bytes(text)) for text in (A_INNER, B_INNER))
    flow = Packet(bytes(400), source=a_inner, destination=b_inner, options=b"")
    packets = [segment.emit() for segment in flow.segments(100)]
    a.tunnel(packets[0])
    a.tunnel(*packets[1:])
    datagrams = a.take()

    def refuse(parts: object) -> bool:
        refused = isinstance(parts, list) and len(parts) > 2
        if refused:
            b.tun.offloads = TunOffloads(tso=False, uso=False)
        return refused

    b.tun.refuse = refuse
    b.network(b"".join(datagrams), A_OUTER, segment=len(datagrams[0]))
    assert b.delivered == packets
    assert b.drops() == {}


def test_a_tun_that_refuses_a_packet_costs_that_packet() -> None:
    """B47."""
    a, b = connected()
    b.tun.refuse = lambda parts: True
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert b.drops() == {DropReason.TUN_WRITE_FAILED: 1}


# Marks, counters, roaming


def test_marks_follow_data_and_not_keepalives() -> None:
    a, b = connected()
    a.now, b.now = 2000 * SECOND - 900 * SECOND, 1100 * SECOND
    a.engine.send_keepalive(1)
    carry(a, b)
    assert (a.engine.marks(1).data_sent_since, b.engine.marks(1).data_received_since) == (0, 0)
    assert b.engine.marks(1).last_traversal == b.now
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    first = a.now
    a.now += SECOND
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.engine.marks(1).data_sent_since == first
    assert b.engine.marks(1).data_received_since == b.now
    b.engine.send_keepalive(1)
    assert b.engine.marks(1).data_received_since == 0
    a.network(b.take()[-1], B_OUTER)
    assert a.engine.marks(1).data_sent_since == 0


def test_activity_is_said_once_until_released() -> None:
    a, _b = connected()
    for _ in range(3):
        a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [Active(1)]
    a.engine.forget_unanswered(1, a.engine.marks(1).data_sent_since)
    a.engine.release_activity(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [Active(1)]


def test_counters_are_whole_datagrams() -> None:
    """I31."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.send_to_peer(1, bytes(148))
    b.engine.note_handshake(1, 148, b.now)
    total = 32 + 64 + 148
    carry(a, b)
    assert a.engine.counters(1).tx_bytes == total
    assert b.engine.counters(1).rx_bytes == total


def test_roaming_is_followed_and_said_once() -> None:
    """M44: with the local address that it came to."""
    a, b = connected()
    elsewhere = Endpoint("203.0.113.9", 9)
    for _ in range(3):
        a.tunnel(ipv4(A_INNER, B_INNER))
    for datagram in a.take():
        b.network(datagram, elsewhere, source=b"there")
    assert [report for report in b.reports() if isinstance(report, Roamed)] == [Roamed(1, elsewhere)]
    b.tunnel(ipv4(B_INNER, A_INNER))
    assert b.sent[-1][0] == elsewhere.sockaddr
    assert b.sent[-1][2] == b"there"


def test_stale_sources_are_forgotten_and_valid_ones_kept() -> None:
    _a, b = connected()
    for source, valid in ((b"gone", False), (b"kept", True)):
        b.engine.set_endpoint(1, A_OUTER, source)
        b.bind.valid_sources = {source} if valid else set()
        b.bind.stale = True
        b.network(b"\0", A_OUTER)
        b.engine.turn()
        b.tunnel(ipv4(B_INNER, A_INNER))
        assert b.sent[-1][2] == (source if valid else None)


# The edges


def test_tun_events_are_reported_and_its_end_is_survived() -> None:
    """B48: EBADFD ends the reading, not the process."""
    a, _ = connected()
    a.tun.events.append(TunEvent.MTU)
    a.tun.gone = True
    a.tunnel(ipv4(A_INNER, B_INNER))
    changes = [report.event for report in a.engine.poll_reports() if isinstance(report, TunChanged)]
    assert changes == [TunEvent.MTU, TunEvent.DELETED]
    a.engine.turn()
    a.engine.close()


def test_without_a_bind_packets_are_counted_lost() -> None:
    a, _ = connected()
    a.engine.detach_bind()
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops() == {DropReason.SEND_FAILED: 1}


def test_calls_about_strangers_are_ignored() -> None:
    """Removal races with everything."""
    a, _ = connected()
    engine = a.engine
    for call in (engine.remove_peer, engine.clear_source, engine.forget_keypairs, engine.expire_sending_keys,
                 engine.expect_key, engine.flush_staged, engine.send_keepalive, engine.marks, engine.release_activity,
                 engine.counters):  # fmt: skip
        call(99)
    engine.install_keypair(99, params(1, 2, initiator=True))
    engine.insert_allowed_ip(99, Prefix.parse("10.0.0.0/8"))
    engine.send_to_peer(99, b"")
    engine.note_handshake(99, 1, 1)
    engine.set_endpoint(99, A_OUTER)
    assert a.drops() == {}


def test_close_is_idempotent_and_forgets_keys() -> None:
    a, _ = connected()
    assert index_count(a.engine) == 1
    a.engine.close()
    a.engine.close()
    assert index_count(a.engine) == 0


def test_the_thread_moves_packets_and_ends() -> None:
    """The same engine with its thread: reports come by the descriptor, close joins."""
    engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    tun = ListTun()
    engine.attach_tun(tun)
    engine.add_peer(1)
    engine.set_mac1_key(bytes(32))
    engine.insert_allowed_ip(1, Prefix.parse(f"{B_INNER}/32"))
    engine.set_endpoint(1, B_OUTER)
    engine.commit()
    engine.set_mtu(1420)
    tun.inject(PLAIN + ipv4(A_INNER, B_INNER))
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    seen: list[object] = []
    while KeyWanted(1) not in seen:
        assert poll.poll(10_000), "no report within 10 s"
        seen += engine.poll_reports()
    sent: list[bytes] = []
    arrived = threading.Event()

    def transmit(sockaddr: SockAddr, data: bytes, source: bytes | None, tos: int) -> None:
        sent.append(data)
        arrived.set()

    engine.attach_bind(ListBind(transmit), 1)
    engine.install_keypair(1, params(10, 20, initiator=True))
    engine.commit()
    assert arrived.wait(10)
    assert len(sent[0]) == 32 + 32
    threads = thread_names()
    engine.close()
    assert threads - thread_names() >= {"wyrmhole-0"} or kind() == "portable"
    assert "wyrmhole-engine" not in {thread.name for thread in threading.enumerate()}
