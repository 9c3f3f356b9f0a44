"""Staged packets: order, limits, and how staging ends."""

from __future__ import annotations

from tests.support.packets import ipv4
from tests.support.sides import (
    A_INNER,
    B_INNER,
    B_OUTER,
    Side,
    carry,
    connected,
    params,
    sides,
)
from wyrmhole.protocol.constants import (
    MAX_STAGED_BYTES,
)
from wyrmhole.protocol.data_plane import (
    KeyWanted,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.prefix import Prefix


def test_staged_packets_leave_in_order_with_the_new_key() -> None:
    """The key is requested only once (M49)."""
    a, b = sides()
    packets = [ipv4(A_INNER, B_INNER, b"%d" % number) for number in range(5)]
    for packet in packets:
        a.tunnel(packet)
    assert a.reports() == [KeyWanted(1)]
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert b.delivered == packets


def test_a_full_stage_drops_its_oldest_packet() -> None:
    """At most 128 packets are staged for a peer (M49, I17)."""
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
    """Add peers that never answer, numbered from 2, and return an inner address of each."""
    addresses = []
    for number in range(2, count + 2):
        a.engine.add_peer(number)
        a.engine.insert_allowed_ip(number, Prefix(4, 0x0B000000 + number, 32))
        a.engine.set_endpoint(number, B_OUTER)
        addresses.append(".".join(map(str, (0x0B000000 + number).to_bytes(4, "big"))))
    return addresses


def staged(a: Side, number: int) -> int:
    """Count the packets staged for the peer, by dropping them."""
    before = a.drops().get(DropReason.HANDSHAKE_GAVE_UP, 0)
    a.engine.flush_staged(number)
    return a.drops().get(DropReason.HANDSHAKE_GAVE_UP, 0) - before


def test_the_staged_bytes_of_a_device_are_limited() -> None:
    """Memory is bounded for any number of silent peers, and bursts for a hundred of them still leave room (I17)."""
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
    assert a.drops()[DropReason.STAGING_CAP] == capped, "flushed packets make room"


def test_silent_peers_leave_staging_room_for_another_peer() -> None:
    """Peers share the staging space; 92 silent peers with steady traffic used to occupy all of it (I17)."""
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


def test_giving_up_drops_staged_packets_and_the_next_asks_again() -> None:
    """After the last attempt, staged packets are dropped, and the next packet requests a key again (M32, L5)."""
    a, _ = sides()
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.flush_staged(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [KeyWanted(1), KeyWanted(1)]
    assert a.drops() == {DropReason.HANDSHAKE_GAVE_UP: 1}


def test_removing_a_peer_removes_its_packets_and_keys() -> None:
    """No state of the peer is left (L10)."""
    a, b = connected()
    b.tunnel(ipv4(B_INNER, A_INNER))
    late = b.take()
    a.engine.remove_peer(1)
    a.network(late[0], B_OUTER)
    assert a.delivered == []
    assert a.drops() == {DropReason.UNKNOWN_INDEX: 1}
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.drops()[DropReason.NO_ROUTE] == 1
