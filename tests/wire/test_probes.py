"""Probe packets: correct lengths and checksums, and recognition of their answers."""

from __future__ import annotations

import ipaddress

import pytest

from wyrmhole.wire import ip, probes
from wyrmhole.wire.checksum import add as add_sums
from wyrmhole.wire.checksum import ones_sum, pseudo_header_sum

V4 = (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("10.0.0.2"))
V6 = (ipaddress.ip_address("fd00::1"), ipaddress.ip_address("fd00::2"))
PAIRS = pytest.mark.parametrize(("ours", "theirs"), [V4, V6], ids=["v4", "v6"])
Address = probes.IpAddress


def turned(packet: bytes) -> bytes:
    """Return the packet with source and destination exchanged."""
    start, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    middle, end = start + size, start + 2 * size
    return packet[:start] + packet[middle:end] + packet[start:middle] + packet[end:]


def refusal(packet: bytes, kind: int, code: int) -> bytes:
    """Return a router's ICMP error about the packet."""
    head = probes.header_size(packet[0] >> 4)
    reply = bytearray(turned(packet)[:head]) + bytes((kind, code)) + bytes(6) + packet
    reply[9 if packet[0] >> 4 == 4 else 6] = ip.PROTOCOL_ICMP if packet[0] >> 4 == 4 else ip.PROTOCOL_ICMPV6
    return bytes(reply)


@PAIRS
@pytest.mark.parametrize("length", [28, 48, 84, 85, 576, 1420])
def test_an_echo_request_has_the_given_length_and_a_valid_checksum(ours: Address, theirs: Address, length: int) -> None:
    head = probes.header_size(ours.version)
    packet = probes.echo_request(ours, theirs, 0x1234_5678, length)
    assert len(packet) == max(length, head + 8) == ip.length_of(packet)
    assert ip.source_of(packet) == ours.packed and ip.destination_of(packet) == theirs.packed
    total = ones_sum(packet[head:])
    if ours.version == 6:
        total = add_sums(total, pseudo_header_sum(ours.packed + theirs.packed, ip.PROTOCOL_ICMPV6, len(packet) - head))
    assert total == 0xFFFF


@PAIRS
@pytest.mark.parametrize("payload", [b"", b"x", b"question", bytes(1000)])
def test_a_udp_packet_has_a_valid_checksum(ours: Address, theirs: Address, payload: bytes) -> None:
    packet = probes.udp_packet(ours, 50_000, theirs, 53, payload)
    head = probes.header_size(ours.version)
    pseudo = pseudo_header_sum(ours.packed + theirs.packed, ip.PROTOCOL_UDP, len(packet) - head)
    assert add_sums(ones_sum(packet[head:]), pseudo) == 0xFFFF


@PAIRS
def test_an_echo_reply_has_the_identity_of_its_request(ours: Address, theirs: Address) -> None:
    packet = bytearray(turned(probes.echo_request(ours, theirs, 0x1234_5678, 84)))
    packet[probes.header_size(ours.version)] = 0 if ours.version == 4 else 129
    assert probes.read_answer(packet) == probes.EchoReply(theirs, 0x1234_5678)


@PAIRS
def test_a_udp_reply_has_ports_and_payload(ours: Address, theirs: Address) -> None:
    packet = probes.udp_packet(theirs, 53, ours, 50_000, b"answer")
    assert probes.read_answer(packet + b"padding") == probes.UdpReply(theirs, 53, 50_000, b"answer")


@pytest.mark.parametrize(
    ("pair", "kind", "code", "port", "big"),
    [
        (V4, 3, 3, True, False),
        (V4, 3, 4, False, True),
        (V4, 3, 1, False, False),
        (V4, 11, 0, False, False),
        (V6, 1, 4, True, False),
        (V6, 2, 0, False, True),
        (V6, 1, 3, False, False),
    ],
)
def test_an_icmp_error_identifies_its_probe(
    pair: tuple[Address, Address], kind: int, code: int, port: bool, big: bool
) -> None:
    ours, theirs = pair
    udp = refusal(probes.udp_packet(ours, 50_000, theirs, 53, b"q"), kind, code)
    assert probes.read_answer(udp) == probes.IcmpRefusal(theirs, 50_000, port, big)
    echo = refusal(probes.echo_request(ours, theirs, 7, 84), kind, code)
    assert probes.read_answer(echo) == probes.IcmpRefusal(theirs, 7, port, big)


@PAIRS
def test_a_request_is_not_recognised_as_an_answer(ours: Address, theirs: Address) -> None:
    assert probes.read_answer(probes.echo_request(ours, theirs, 7, 84)) is None


@PAIRS
def test_a_truncated_answer_does_not_raise(ours: Address, theirs: Address) -> None:
    whole = refusal(probes.udp_packet(ours, 50_000, theirs, 53, b"q"), 3 if ours.version == 4 else 1, 3)
    for end in range(len(whole)):
        probes.read_answer(whole[:end])
    for junk in (b"", b"\x00", b"\x4f" * 30, b"\x60" * 41):
        probes.read_answer(junk)
