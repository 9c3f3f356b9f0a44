"""How the capture of `site` classifies packets."""

from __future__ import annotations

import pytest

from tests.support.packets import ICMP, TCP, UDP, ipv4, ipv6, tcp_segment, udp, udp_datagram
from tests.support.site import MARK, OUTER_PORT, describe

ETHERNET = bytes(12)


V4, V6 = ("192.0.2.1", "192.0.2.2"), ("fd00::1", "fd00::2")


def icmp_error(about: bytes) -> bytes:
    return ipv4(*V4, b"\x03\x03" + bytes(6) + about, protocol=ICMP)


TUNNEL = udp(*V4, (OUTER_PORT, 40_000))
QUESTION = udp(*V4, (40_000, 53))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (b"\x08\x00" + TUNNEL, "tunnel"),
        (b"\x08\x00" + udp(*V4, (40_000, OUTER_PORT)), "tunnel"),
        (b"\x08\x00" + icmp_error(TUNNEL), "tunnel"),
        (b"\x08\x00" + QUESTION, "protocol 17 from port 40000 to 53"),
        (b"\x08\x00" + icmp_error(QUESTION), "an ICMP error about protocol 17 from port 40000 to 53"),
        (
            b"\x08\x00" + ipv4(*V4, tcp_segment((40_000, OUTER_PORT)), protocol=TCP),
            f"protocol 6 from port 40000 to {OUTER_PORT}",
        ),
        (b"\x86\xdd" + ipv6(*V6, udp_datagram((40_000, 53)), protocol=UDP), "protocol 17 from port 40000 to 53"),
        (b"\x86\xdd" + ipv6(*V6, bytes(8), protocol=58), "housekeeping"),
        (b"\x08\x06" + bytes(28), "housekeeping"),
        (MARK[12:], "ethertype 0x88b5"),
    ],
)
def test_packets_are_classified(packet: bytes, expected: str) -> None:
    assert describe(ETHERNET + packet) == expected
