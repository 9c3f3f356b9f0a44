"""What the capture of `site` calls the packets that pass, and that it misses none."""

from __future__ import annotations

import socket

import pytest

from tests.library.site import MARK, OUTER_PORT, describe

ETHERNET = bytes(12)


def ipv4(protocol: int, payload: bytes) -> bytes:
    return b"\x45" + bytes(8) + bytes([protocol]) + bytes(10) + payload


def udp(source: int, destination: int) -> bytes:
    return source.to_bytes(2) + destination.to_bytes(2) + bytes(4)


def complaint(about: bytes) -> bytes:
    return ipv4(socket.IPPROTO_ICMP, b"\x03\x03" + bytes(6) + about)


TUNNEL = ipv4(socket.IPPROTO_UDP, udp(OUTER_PORT, 40_000))
QUESTION = ipv4(socket.IPPROTO_UDP, udp(40_000, 53))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (b"\x08\x00" + TUNNEL, "tunnel"),
        (b"\x08\x00" + ipv4(socket.IPPROTO_UDP, udp(40_000, OUTER_PORT)), "tunnel"),
        (b"\x08\x00" + complaint(TUNNEL), "tunnel"),
        (b"\x08\x00" + QUESTION, "protocol 17 from port 40000 to 53"),
        (b"\x08\x00" + complaint(QUESTION), "a complaint about protocol 17 from port 40000 to 53"),
        (
            b"\x08\x00" + ipv4(socket.IPPROTO_TCP, udp(40_000, OUTER_PORT)),
            f"protocol 6 from port 40000 to {OUTER_PORT}",
        ),
        (b"\x86\xdd" + b"\x60" + bytes(5) + b"\x11" + bytes(33) + udp(40_000, 53), "protocol 17 from port 40000 to 53"),
        (b"\x86\xdd" + b"\x60" + bytes(5) + b"\x3a" + bytes(33) + bytes(8), "housekeeping"),
        (b"\x08\x06" + bytes(28), "housekeeping"),
        (MARK[12:], "ethertype 0x88b5"),
    ],
)
def test_a_packet_is_called_what_it_is(packet: bytes, expected: str) -> None:
    assert describe(ETHERNET + packet) == expected
