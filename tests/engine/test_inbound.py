"""Received datagrams: delivery, and every reason for which one is dropped."""

from __future__ import annotations

import struct

import pytest

from tests.support.packets import ipv4
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    carry,
    connected,
    params,
)
from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.protocol.data_plane import (
    Roamed,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


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
def test_invalid_datagrams_are_counted_and_get_no_answer(data: bytes, reason: DropReason) -> None:
    """Wrong lengths, types, reserved bits, MACs, indices and tags: each has its drop reason (M4 to M8, M37, M50)."""
    _, b = connected()
    b.network(data, A_OUTER)
    assert b.drops() == {reason: 1}
    assert b.take() == []
    assert b.delivered == []
    assert b.reports() == []


def test_a_duplicate_is_delivered_once() -> None:
    """No inner packet is delivered twice (I3)."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    (datagram,) = a.take()
    b.network(datagram, A_OUTER)
    b.network(datagram, A_OUTER)
    assert len(b.delivered) == 1
    assert b.drops() == {DropReason.REPLAYED: 1}


def test_a_forged_counter_does_not_move_the_window() -> None:
    """A forged packet with a very high counter does not make genuine packets too old (M23, I9, I12)."""
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
    """The endpoint, the marks and the counters are unchanged (I11, I12)."""
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
def test_an_authenticated_invalid_packet_is_dropped_but_roams(inner: bytes) -> None:
    """In wireguard-go, an IPv6 length of 65,528 wraps, and a fragment is delivered (M47, M44)."""
    _, b = connected()
    nonce = bytes(4) + (7).to_bytes(8, "little")
    sealed = bytearray(struct.pack("<IIQ", 4, 20, 7) + bytes(len(inner) + 16))
    TransportCipher(params(10, 20, initiator=True).send_key).seal(nonce, inner, None, memoryview(sealed)[16:])
    b.network(bytes(sealed), Endpoint("203.0.113.9", 9))
    assert b.delivered == []
    assert b.drops() == {DropReason.NOT_IP: 1}
    assert Roamed(1, Endpoint("203.0.113.9", 9)) in b.reports()


def test_padding_is_removed_before_delivery() -> None:
    """The inner header's length decides where the packet ends (M47)."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"odd"))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"odd")]


def test_the_inner_source_must_route_back_to_the_peer() -> None:
    """The whole table is consulted: here, another peer owns a /32 inside this peer's /24 (M45)."""
    a, b = connected()
    b.engine.insert_allowed_ip(1, Prefix.parse("10.0.0.0/24"))
    b.engine.add_peer(2)
    b.engine.insert_allowed_ip(2, Prefix.parse("10.0.0.7/32"))
    a.tunnel(*[ipv4(source, B_INNER) for source in ("10.0.0.6", "10.0.0.7", "10.9.0.1", A_INNER)])
    carry(a, b)
    assert b.delivered == [ipv4("10.0.0.6", B_INNER), ipv4(A_INNER, B_INNER)]
    assert b.drops() == {DropReason.BAD_SOURCE: 2}


def test_a_packet_that_the_tun_rejects_is_dropped_alone() -> None:
    a, b = connected()
    b.tun.refuse = lambda parts: True
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert b.drops() == {DropReason.TUN_WRITE_FAILED: 1}
