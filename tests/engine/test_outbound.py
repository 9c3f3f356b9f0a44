"""Packets from the TUN: header, counter, padding, and every reason for which one is dropped."""

from __future__ import annotations

import struct

import pytest

from tests.support.packets import address_bytes, ipv4, udp
from tests.support.sides import (
    A_INNER,
    B_INNER,
    B_OUTER,
    carry,
    connected,
    sides,
)
from wyrmhole.net.bind import SendOutcome
from wyrmhole.protocol.constants import (
    SECOND,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.prefix import Prefix


def test_a_packet_arrives_unchanged() -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER)]


def test_transport_messages_have_header_counter_and_padding() -> None:
    """Counters start at 0 (the keepalive), and lengths are multiples of 16 (M7, M20, M22)."""
    a, _ = connected()
    for size in range(40):
        a.tunnel(ipv4(A_INNER, B_INNER, bytes(size)))
    datagrams = a.take()
    assert [struct.unpack_from("<IIQ", data) for data in datagrams] == [(4, 20, 1 + number) for number in range(40)]
    assert all(len(data) % 16 == 0 for data in datagrams)
    assert [len(data) for data in datagrams] == [32 + -(-(20 + size) // 16) * 16 for size in range(40)]


@pytest.mark.parametrize(("mtu", "size", "padded"), [(1420, 1420, 1420), (1420, 1419, 1420), (1420, 1401, 1408)])
def test_padding_does_not_exceed_the_mtu(mtu: int, size: int, padded: int) -> None:
    """Packets are padded to multiples of 16, but not beyond the MTU (M22)."""
    a, _ = connected()
    a.engine.set_mtu(mtu)
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(size - 20)))
    assert len(a.take()[0]) == padded + 32


def test_a_packet_above_the_mtu_is_padded_by_its_remainder() -> None:
    """Such a packet occurs when the MTU has changed and the engine does not know yet (M22)."""
    a, _ = connected()
    a.engine.set_mtu(1300)
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(1330)))
    assert len(a.take()[0]) == 1350 + 14 + 32


def test_a_packet_without_a_route_is_answered_by_icmp() -> None:
    """No peer owns the destination, so the sender receives an ICMP error (M46)."""
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


def test_a_packet_to_a_peer_without_endpoint_is_answered_by_icmp() -> None:
    """The sender receives an ICMP error, and no key is requested (M46)."""
    a, _ = sides()
    a.engine.set_endpoint(1, None)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops() == {DropReason.NO_ENDPOINT: 1}
    assert len(a.delivered) == 1
    assert a.reports() == []


def test_icmp_errors_are_rate_limited_and_not_sent_for_errors() -> None:
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
def test_a_frame_that_is_not_ip_is_dropped(frame: bytes) -> None:
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
def test_an_invalid_virtio_header_drops_one_frame(header: tuple[int, ...]) -> None:
    """wireguard-go closes the device on any such error except too many segments."""
    a, b = connected()
    a.tun.inject(struct.pack("=BBHHHH", *header) + ipv4(A_INNER, B_INNER, bytes(400), protocol=6))
    a.engine.turn()
    assert a.drops() == {DropReason.MALFORMED_FRAME: 1}
    a.tunnel(ipv4(A_INNER, B_INNER, b"next"))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"next")]


def test_our_own_datagram_routed_into_the_tunnel_is_dropped() -> None:
    """Such a route loop occupies 1.7 CPUs in wireguard-go and never ends."""
    a, _ = connected()
    a.engine.insert_allowed_ip(1, Prefix.parse("0.0.0.0/0"))
    a.tunnel(udp("192.0.2.1", B_OUTER.host, (51820, B_OUTER.port)))
    assert a.take() == []
    assert a.drops() == {DropReason.ROUTE_LOOP: 1}
    a.tunnel(udp("192.0.2.1", B_OUTER.host, (5353, B_OUTER.port)), udp(A_INNER, "192.0.2.9", (51820, B_OUTER.port)))
    assert len(a.take()) == 2


def test_a_failed_send_is_counted_and_forgets_a_bad_source() -> None:
    a, _ = connected()
    a.engine.set_endpoint(1, B_OUTER, b"pinned")
    a.bind.outcome = SendOutcome.SOURCE_REJECTED
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.bind.outcome = SendOutcome.DROPPED
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert [source for _, _, source, _ in a.sent[-2:]] == [b"pinned", None]
    assert a.drops() == {DropReason.SEND_FAILED: 1}


def test_without_a_bind_packets_are_counted_as_lost() -> None:
    a, _ = connected()
    a.engine.detach_bind()
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops() == {DropReason.SEND_FAILED: 1}
