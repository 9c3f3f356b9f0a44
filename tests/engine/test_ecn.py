"""The TOS byte outside and inside the tunnel (RFC 6040)."""

from __future__ import annotations

import pytest

from tests.support.packets import ipv4, ipv6
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    connected,
)
from wyrmhole.protocol.drops import Oddity
from wyrmhole.wire import ip
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


def test_only_the_ecn_field_is_copied_to_the_outer_header() -> None:
    """The outer header gets the ECN field, as RFC 6040 specifies, but not the DSCP (M48)."""
    a, _ = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, tos=0xB8 | 2))
    assert a.sent[-1][3] == 2


def test_handshake_messages_are_marked_af41() -> None:
    """Like the kernel's handshake messages, ours carry DSCP AF41 (M48)."""
    a, _ = connected()
    a.engine.send_to_peer(1, b"handshake")
    assert a.sent[-1][1:] == (b"handshake", None, 0x88)


def test_cookie_replies_are_not_marked() -> None:
    """A flooder can trigger any number of them. The kernel does not mark them either."""
    a, _ = connected()
    a.engine.send_to(A_OUTER, b"here", b"cookie reply")
    assert a.sent[-1] == (A_OUTER.sockaddr, b"cookie reply", b"here", 0)


@pytest.mark.parametrize("outer_is_v6", [False, True])
@pytest.mark.parametrize("inner_is_v6", [False, True])
@pytest.mark.parametrize("is_train", [False, True])
def test_outer_congestion_marks_are_copied_inside(outer_is_v6: bool, inner_is_v6: bool, is_train: bool) -> None:
    """All 16 pairs of figure 4 of RFC 6040. Like the kernel, we drop no packet. DSCP (here 0x40) is unchanged (M48)."""
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
