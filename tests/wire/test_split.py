"""Super-packets are split like in the kernel, and an invalid frame is dropped alone."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.packets import ACK, CWR, FIN, PSH, TCP, UDP, Packet, pattern, super_packets, word_sum
from wyrmhole.wire.split import MAX_SEGMENTS, split
from wyrmhole.wire.virtio import (
    F_NEEDS_CSUM,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    PLAIN_HEADER,
    OffloadError,
    VirtioHeader,
)


@given(super_packets())
def test_segments_equal_those_of_a_simple_segmentation(drawn: tuple[Packet, int]) -> None:
    packet, size = drawn
    assert split(packet.frame(size)) == [segment.emit() for segment in packet.segments(size)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_super_packet_of_maximum_size_is_split(version: int, protocol: int) -> None:
    packet = Packet(pattern(45 * 1368 + 100), version=version, protocol=protocol, flags=ACK | PSH)
    segments = split(memoryview(packet.frame(1368)))
    assert segments == [segment.emit() for segment in packet.segments(1368)]
    assert len(segments) == 46


def test_fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() -> None:
    packet = Packet(pattern(40), flags=ACK | PSH | FIN | CWR, options=b"")
    assert [segment[33] for segment in split(packet.frame(10))] == [ACK | CWR, ACK, ACK, ACK | PSH | FIN]


def test_identification_and_sequence_number_wrap() -> None:
    packet = Packet(pattern(40), identification=0xFFFE, sequence=2**32 - 20, options=b"")
    segments = split(packet.frame(10))
    assert [segment[4:6].hex() for segment in segments] == ["fffe", "ffff", "0000", "0001"]
    assert [segment[24:28].hex() for segment in segments] == ["ffffffec", "fffffff6", "00000000", "0000000a"]
    assert [word_sum(segment[:20]) for segment in segments] == [0xFFFF] * 4


def test_a_super_packet_may_have_one_segment_or_no_payload() -> None:
    for payload in (b"x" * 50, b""):
        packet = Packet(payload, flags=ACK | PSH)
        assert split(packet.frame(100)) == [packet.emit()]


def test_the_smallest_segments_of_linux_are_all_delivered() -> None:
    """A peer can reduce the segment size to 8 bytes; the whole super-packet is still delivered."""
    packet = Packet(pattern(65_535 - 52))
    assert len(split(packet.frame(8))) == 8186
    with pytest.raises(OffloadError):
        split(packet.frame(7))
    assert MAX_SEGMENTS == 8192


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_an_impossible_segment_size_yields_one_segment(version: int, protocol: int) -> None:
    """Found by fuzzing: there is only one segment, and no length overflows."""
    packet = Packet(b"x" * 50, version=version, protocol=protocol)
    for size in (51, 65_500, 65_535):
        assert split(packet.frame(size)) == [packet.emit()]


def test_segments_may_have_one_byte() -> None:
    packet = Packet(pattern(128), protocol=UDP)
    assert split(packet.frame(1)) == [segment.emit() for segment in packet.segments(1)]


def test_ipv6_extension_headers_are_walked() -> None:
    """Hop-by-hop options, and a routing header whose final destination is only in the partial checksum."""
    packet = Packet(pattern(30), version=6, options=b"")
    extensions = bytes([43, 0]) + bytes(6) + bytes([6, 0]) + bytes(6)

    def with_extensions(plain: bytes) -> bytes:
        length = int.from_bytes(plain[4:6], "big") + len(extensions)
        return plain[:4] + length.to_bytes(2, "big") + b"\0" + plain[7:40] + extensions + plain[40:]

    header = VirtioHeader(F_NEEDS_CSUM, GSO_TCPV6, 0, 10, 56, 16).emit()
    segments = split(header + with_extensions(packet.emit_partial()))
    assert segments == [with_extensions(segment.emit()) for segment in packet.segments(10)]


def test_a_packet_without_offload_is_unchanged() -> None:
    packet = Packet(b"hello").emit()
    assert split(PLAIN_HEADER + packet) == [packet]
    assert split(memoryview(PLAIN_HEADER + b"\x60rubbish")) == [b"\x60rubbish"]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_a_partial_checksum_is_completed(version: int, protocol: int) -> None:
    packet = Packet(b"hello", version=version, protocol=protocol)
    header = VirtioHeader(F_NEEDS_CSUM, csum_start=packet.start, csum_offset=packet.checksum_offset)
    assert split(header.emit() + packet.emit_partial()) == [packet.emit()]


def test_a_completed_udp_checksum_is_never_zero() -> None:
    """0 means "no checksum" in UDP, so 0xFFFF is sent instead (RFC 768)."""
    packet = Packet(b"\0\0", protocol=UDP)
    rest = int.from_bytes(packet.emit()[26:28], "big")
    packet = replace(packet, payload=rest.to_bytes(2, "big"))
    header = VirtioHeader(F_NEEDS_CSUM, csum_start=20, csum_offset=6).emit()
    (finished,) = split(header + packet.emit_partial())
    (segment,) = split(packet.frame(2))
    assert finished == segment == packet.emit()
    assert finished[26:28] == b"\xff\xff"


def tcp_frame(**changes: int) -> bytes:
    """Return a TCP super-packet over IPv4 without options, with these fields of the virtio header changed."""
    packet = Packet(pattern(100), options=b"")
    fields = {"flags": F_NEEDS_CSUM, "gso_type": GSO_TCPV4, "gso_size": 10, "csum_start": 20, "csum_offset": 16}
    return VirtioHeader(**(fields | changes)).emit() + packet.emit_partial()


def patched(frame: bytes, at: int, value: int) -> bytes:
    """Return the frame with one byte of its packet changed."""
    return frame[: 10 + at] + bytes((value,)) + frame[11 + at :]


BAD_FRAMES = {
    "no header": b"\0" * 9,
    "no packet": PLAIN_HEADER,
    "segments of size 0": tcp_frame(gso_size=0),
    "checksum before the transport header": tcp_frame(csum_start=0),
    "checksum beyond the packet": tcp_frame(csum_start=65535),
    "checksum beyond a packet without segments": tcp_frame(gso_type=0, csum_start=65535, csum_offset=65535),
    "checksum field truncated": VirtioHeader(1, csum_start=20, csum_offset=1).emit() + bytes(22),
    "checksum at another field": tcp_frame(csum_offset=6),
    "checksum complete": tcp_frame(flags=0),
    "unknown type": tcp_frame(gso_type=3),
    "ECN on UDP": tcp_frame(gso_type=GSO_UDP_L4 | GSO_ECN),
    "ECN on nothing": tcp_frame(gso_type=GSO_ECN),
    "version 6 in the header, 4 in the packet": tcp_frame(gso_type=GSO_TCPV6),
    "version 4 in the header, 6 in the packet": patched(tcp_frame(), 0, 0x65),
    "version 5": patched(tcp_frame(gso_type=GSO_UDP_L4), 0, 0x55),
    "IPv4 header length below 20": patched(tcp_frame(csum_start=16), 0, 0x44),
    "IPv4 header length beyond the packet": VirtioHeader(1, 1, 0, 9, 60, 16).emit() + b"\x4f" + bytes(40),
    "IPv4 header truncated": VirtioHeader(1, 1, 0, 9, 20, 16).emit() + b"\x45\0\0",
    "IPv6 header truncated": VirtioHeader(1, 4, 0, 9, 40, 16).emit() + b"\x60" + bytes(38),
    "IPv6 extension beyond the packet": VirtioHeader(1, 4, 0, 9, 40, 16).emit() + b"\x60" + bytes(39),
    "more fragments": patched(tcp_frame(), 6, 0x20),
    "later fragment": patched(tcp_frame(), 7, 1),
    "another protocol": patched(tcp_frame(), 9, UDP),
    "TCP header length below 20": patched(tcp_frame(), 32, 0x40),
    "TCP header length beyond the packet": VirtioHeader(1, 1, 0, 9, 20, 16).emit()
    + Packet(b"", options=b"").emit_partial()[:32]
    + b"\xf0"
    + bytes(7),
    "TCP header truncated": VirtioHeader(1, 1, 0, 9, 20, 16).emit() + Packet().emit()[:39],
    "UDP header truncated": VirtioHeader(1, 5, 0, 9, 20, 6).emit() + Packet(protocol=UDP).emit()[:27],
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_an_inconsistent_header_raises_offload_error(frame: bytes) -> None:
    with pytest.raises(OffloadError):
        split(frame)


def test_a_segment_size_beyond_the_packet_yields_one_segment() -> None:
    """Found by the parity scripts: with a size of 65,535, the code computed a length that does not fit its field."""
    datagram = struct.pack(">HHHH", 1, 2, 108, 0) + bytes(100)
    packet = struct.pack(">BBHHHBBHII", 0x45, 0, 128, 0, 0, 64, 17, 0, 1, 2) + datagram
    for size in (100, 65_535):
        frame = struct.pack("=BBHHHH", 1, 5, 28, size, 20, 6) + packet
        assert [len(segment) for segment in split(frame)] == [128]


def test_the_unchanged_frame_of_these_tests_is_valid() -> None:
    assert len(split(tcp_frame())) == 10
    assert len(split(tcp_frame(gso_type=GSO_TCPV4 | GSO_ECN, header_length=65535))) == 10


@given(st.binary(max_size=120))
@example(b"\x01\x01" + bytes(8) + b"\x45")
def test_any_frame_is_split_or_raises_offload_error(frame: bytes) -> None:
    try:
        packets = split(frame)
    except OffloadError:
        return
    assert packets


@given(super_packets(), st.data())
def test_a_damaged_frame_is_split_or_raises_offload_error(drawn: tuple[Packet, int], data: st.DataObject) -> None:
    frame = bytearray(drawn[0].frame(drawn[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, min(len(frame) - 1, 90)))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(0, len(frame))) :]
    try:
        packets = split(bytes(frame))
    except OffloadError:
        return
    assert sum(map(len, packets)) >= len(frame) - 10
