"""Trains: packets that leave in one send, and datagrams that arrive in one receive."""

from __future__ import annotations

from tests.support.packets import Packet, address_bytes, ipv4
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    Side,
    carry,
    connected,
    handshake_message,
    params,
)
from wyrmhole.net.tun import TunOffloads
from wyrmhole.protocol.data_plane import (
    HandshakeDatagram,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


def test_packets_read_together_leave_in_one_send() -> None:
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


def test_a_change_of_size_ends_a_train() -> None:
    """UDP segmentation sends equal sizes, of which the last may be shorter. The order is kept."""
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


def test_a_train_has_at_most_64_datagrams_and_65507_bytes() -> None:
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


def test_interleaved_packets_to_two_peers_make_one_train_each() -> None:
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


def test_a_bad_datagram_in_a_train_is_dropped_alone() -> None:
    """One receive holds a corrupt datagram, a duplicate and a short tail."""
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


def test_a_train_may_hold_two_keys_and_a_handshake_message() -> None:
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
    """Nothing is lost if a kernel accepts the offload but then refuses the write."""
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
