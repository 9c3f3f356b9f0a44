"""The engine's state of each peer: marks, counters, the endpoint and the source address."""

from __future__ import annotations

from tests.support.packets import ipv4
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    carry,
    connected,
)
from wyrmhole.protocol.constants import (
    SECOND,
)
from wyrmhole.protocol.data_plane import (
    Active,
    Roamed,
)
from wyrmhole.wire.endpoint import Endpoint


def test_data_moves_the_marks_and_keepalives_do_not() -> None:
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


def test_activity_is_reported_once_until_released() -> None:
    a, _b = connected()
    for _ in range(3):
        a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [Active(1)]
    a.engine.forget_unanswered(1, a.engine.marks(1).data_sent_since)
    a.engine.release_activity(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports() == [Active(1)]


def test_counters_add_up_whole_datagrams() -> None:
    """Byte counters include headers, padding and handshake messages (I31)."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.send_to_peer(1, bytes(148))
    b.engine.note_handshake(1, 148, b.now)
    total = 32 + 64 + 148
    carry(a, b)
    assert a.engine.counters(1).tx_bytes == total
    assert b.engine.counters(1).rx_bytes == total


def test_roaming_is_followed_and_reported_once() -> None:
    """Answers leave from the local address that the peer's datagram arrived at (M44)."""
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


def test_stale_source_addresses_are_forgotten() -> None:
    _a, b = connected()
    for source, valid in ((b"gone", False), (b"kept", True)):
        b.engine.set_endpoint(1, A_OUTER, source)
        b.bind.valid_sources = {source} if valid else set()
        b.bind.stale = True
        b.network(b"\0", A_OUTER)
        b.engine.turn()
        b.tunnel(ipv4(B_INNER, A_INNER))
        assert b.sent[-1][2] == (source if valid else None)
