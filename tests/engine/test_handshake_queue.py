"""The queue of handshake messages for the protocol: bounded, and quiet sources come first."""

from __future__ import annotations

import pytest

from tests.support.packets import ipv4
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    carry,
    connected,
    handshake_message,
    outer,
)
from wyrmhole.protocol.constants import (
    MAX_QUEUED_HANDSHAKES,
    UNDER_LOAD_QUEUE_DEPTH,
)
from wyrmhole.protocol.data_plane import (
    Active,
    HandshakeDatagram,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint


@pytest.mark.parametrize("kind", [1, 2])
def test_handshake_messages_with_a_valid_mac1_are_reported(kind: int) -> None:
    """A response is reported only while its initiation is pending (M37)."""
    _, b = connected()
    b.engine.begin_initiation(0)
    b.network(handshake_message(kind), A_OUTER, source=b"here")
    assert b.reports() == [HandshakeDatagram(handshake_message(kind), A_OUTER, b"here", 0)]


def test_the_handshake_queue_is_bounded_and_reported_last() -> None:
    """A full queue drops messages; each report carries the queue's depth, which defines load (M38, M50)."""
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
def test_under_load_quiet_sources_go_first(is_v6: bool) -> None:
    """A flooding address or /64 gets one slot in the queue, which leaves room for other sources."""
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
