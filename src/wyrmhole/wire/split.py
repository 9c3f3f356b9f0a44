"""Splitting: turn one TUN frame into complete IP packets.

A super-packet holds up to 64 KiB of one TCP or UDP flow under one set of headers and is split into segments of
`gso_size` bytes of payload. The headers of the segments differ in a few words only: IPv4 identification, lengths in the
last segment, TCP sequence number and flags, checksums. A run is a sequence of segments of equal size with equal flags;
its constant words, and their part of the checksums, are computed once outside the loop. A segment then costs one sum
over its payload and one `pack` that writes headers and payload together.

The transport checksum starts from the pseudo-header's sum, which the kernel leaves in the checksum field. The final
destination of a source route therefore needs no special case. The offsets in the virtio header must equal those of the
packet's own headers, and only the latter are used. The virtio header's length hint is not read at all.
"""

from __future__ import annotations

import struct

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import residue
from wyrmhole.wire.ip import (
    IPV4_HEADER_SIZE,
    IPV6_HEADER_SIZE,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_HEADER_SIZE,
    UDP_HEADER_SIZE,
    WALKABLE_EXTENSIONS,
)
from wyrmhole.wire.virtio import (
    F_NEEDS_CSUM,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    VIRTIO_HEADER_SIZE,
    OffloadError,
    VirtioHeader,
)

MAX_SEGMENTS = 8192
"""A TCP peer can make Linux use segments of 8 bytes of payload (TCP_MIN_GSO_SIZE), which is 8190 segments in the
largest super-packet. A correct kernel never makes more, and more would only consume memory."""

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_V4_FRAGMENT = 0x3FFF  # more-fragments bit and offset
_PROTOCOLS = {GSO_TCPV4: PROTOCOL_TCP, GSO_TCPV6: PROTOCOL_TCP, GSO_UDP_L4: PROTOCOL_UDP}
_VERSIONS = {GSO_TCPV4: (4,), GSO_TCPV6: (6,), GSO_UDP_L4: (4, 6)}
_CHECKSUM_OFFSETS = {PROTOCOL_TCP: 16, PROTOCOL_UDP: 6}
_HEADER_SIZES = {PROTOCOL_TCP: TCP_HEADER_SIZE, PROTOCOL_UDP: UDP_HEADER_SIZE}


def split(frame: Buffer) -> list[bytes]:
    """Return the complete IP packets of one TUN frame, in order, with all checksums filled in.

    Raises OffloadError, for the whole frame, if header and packet are inconsistent. A packet without offloads is
    returned unchanged; the caller must check that it is an IP packet.
    """
    header = VirtioHeader.parse(frame)
    packet = bytes(frame[VIRTIO_HEADER_SIZE:])
    if not packet:
        raise OffloadError("a TUN frame holds no packet")
    if header.gso_type != GSO_NONE:
        return _split_super_packet(packet, header)
    return [complete(packet, header.csum_start, header.csum_offset) if header.flags & F_NEEDS_CSUM else packet]


def complete(packet: bytes, csum_start: int, csum_offset: int) -> bytes:
    """Complete the partial checksum of one packet. Raises OffloadError if its field lies beyond the packet.

    A sum of 0 is written as the equivalent 0xFFFF, because 0 means no checksum in UDP.
    """
    field = csum_start + csum_offset
    if field + 2 > len(packet):
        raise OffloadError("the checksum field lies beyond the packet")
    value = -residue(packet[csum_start:]) % 0xFFFF or 0xFFFF
    return packet[:field] + value.to_bytes(2, "little") + packet[field + 2 :]


def _split_super_packet(packet: bytes, header: VirtioHeader) -> list[bytes]:
    kind = header.gso_type if header.gso_type == GSO_UDP_L4 else header.gso_type & ~GSO_ECN
    protocol = _PROTOCOLS.get(kind)
    if protocol is None:
        raise OffloadError(f"unknown segmentation type {header.gso_type}")
    if packet[0] >> 4 not in _VERSIONS[kind]:
        raise OffloadError(f"segmentation type {header.gso_type} on a packet of IP version {packet[0] >> 4}")
    start = _transport_start(packet, protocol)
    if start + _HEADER_SIZES[protocol] > len(packet):
        raise OffloadError("a super-packet is shorter than its headers")
    field = (header.csum_start, header.csum_offset)
    if not header.flags & F_NEEDS_CSUM or field != (start, _CHECKSUM_OFFSETS[protocol]):
        raise OffloadError("a super-packet's checksum field is not where its own headers place it")
    return (_split_tcp if protocol == PROTOCOL_TCP else _split_udp)(packet, start, header.gso_size)


def _transport_start(packet: bytes, protocol: int) -> int:
    """Return the offset of the transport header according to the IP headers.

    Raises OffloadError for another protocol.
    """
    found, start = _walk_v4(packet) if packet[0] >> 4 == 4 else _walk_v6(packet)
    if found != protocol:
        raise OffloadError(f"a super-packet should carry protocol {protocol}, but carries {found}")
    return start


def _walk_v4(packet: bytes) -> tuple[int, int]:
    start = (packet[0] & 0xF) * 4
    if start < IPV4_HEADER_SIZE or start > len(packet):
        raise OffloadError("a super-packet has a bad IPv4 header length")
    if _word(packet, 6) & _V4_FRAGMENT:
        raise OffloadError("a super-packet is a fragment")
    return packet[9], start


def _walk_v6(packet: bytes) -> tuple[int, int]:
    if len(packet) < IPV6_HEADER_SIZE:
        raise OffloadError("a super-packet is shorter than an IPv6 header")
    found, start = packet[6], IPV6_HEADER_SIZE
    while found in WALKABLE_EXTENSIONS and start + 2 <= len(packet):
        found, start = packet[start], start + 8 * (packet[start + 1] + 1)
    return found, start


def _word(packet: bytes, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]


def _starts(packet: bytes, payload: int, gso_size: int) -> range:
    """Return the offsets of the segments' payloads. A super-packet without payload is one segment."""
    if gso_size == 0:
        raise OffloadError("a super-packet has segments of size 0")
    starts = range(payload, max(len(packet), payload + 1), gso_size)
    if len(starts) > MAX_SEGMENTS:
        raise OffloadError(f"a super-packet has more than {MAX_SEGMENTS} segments")
    return starts


class _IpWords:
    """The first 12 bytes of the IP header of equal segments: 4 constant bytes, a word, 4 constant bytes, a word.

    In IPv4 the words are identification and header checksum, which differ per segment (`step` is 1). In IPv6 they are
    the payload length and a part of the source address, which are constant.
    """

    __slots__ = ("between", "first", "front", "second", "step", "total")

    def __init__(self, packet: bytes, start: int, length: int) -> None:
        """Compute the parts for segments of `length` bytes.

        `total` is the sum of the IPv4 header without the two words.
        """
        self.first, self.between, self.second = _word(packet, 4), packet[6:10], _word(packet, 10)
        if packet[0] >> 4 == 4:
            self.step = 1
            self.front = packet[:2] + length.to_bytes(2, "big")
            self.total = residue(self.front + self.between + packet[12:start]) << 8
        else:
            self.step = self.total = 0
            self.front = packet[:4]
            self.first = length - 40


def _split_tcp(packet: bytes, start: int, gso_size: int) -> list[bytes]:
    """Split a TCP super-packet. CWR stays on the first segment, FIN and PSH on the last, like in tcp_gso_segment."""
    payload = start + (packet[start + 12] >> 4) * 4
    if not start + 20 <= payload <= len(packet):
        raise OffloadError("a super-packet has a bad TCP header length")
    starts = _starts(packet, payload, gso_size)
    last = len(starts) - 1
    flags = packet[start + 13]
    run = _TcpRun(packet, start, payload)
    if not last:
        return run.emit(starts, 0, flags, len(packet) - payload)
    middle = flags & ~(_FIN | _PSH | _CWR)
    segments = run.emit(starts[:1], 0, middle | _CWR, gso_size) if flags & _CWR else []
    segments += run.emit(starts[len(segments) : last], len(segments), middle, gso_size)
    segments += run.emit(starts[last:], last, flags & ~_CWR, len(packet) - starts[last])
    return segments


class _TcpRun:
    """Emits runs of segments of one TCP super-packet."""

    __slots__ = ("packet", "payload", "start")

    def __init__(self, packet: bytes, start: int, payload: int) -> None:
        self.packet, self.start, self.payload = packet, start, payload

    def emit(self, starts: range, index: int, flags: int, size: int) -> list[bytes]:
        """Return the segments from number `index`, each with `size` bytes of payload and these flags."""
        packet, start, payload = self.packet, self.start, self.payload
        ip = _IpWords(packet, start, payload + size)
        front, between, second, step, total = ip.front, ip.between, ip.second, ip.step, ip.total
        middle, options = packet[12 : start + 4], packet[start + 18 : payload]
        reply = packet[start + 8 : start + 13] + bytes((flags,)) + packet[start + 14 : start + 16]
        pseudo = _word(packet, start + 16) - len(packet) + payload + size
        constant = pseudo + (residue(packet[start : start + 4] + reply + options) << 8)
        offset = int.from_bytes(packet[start + 4 : start + 8], "big") - payload
        pack = struct.Struct(f">4sH4sH{len(middle)}sI8sH{len(options)}s{size}s").pack
        word, segments = ip.first + index * step, []
        for at in starts:
            data = packet[at : at + size]
            sequence = (offset + at) & 0xFFFFFFFF
            checksum = -(constant + sequence + (residue(data) << 8)) % 0xFFFF
            word &= 0xFFFF
            if step:
                second = -(total + word) % 0xFFFF
            segments.append(
                pack(front, word, between, second, middle, sequence, reply, checksum, options, data),
            )
            word += step
        return segments


def _split_udp(packet: bytes, start: int, gso_size: int) -> list[bytes]:
    starts = _starts(packet, start + 8, gso_size)
    last = len(starts) - 1
    # A single segment may be smaller than `gso_size`, which may then exceed a UDP length.
    segments = _emit_udp(packet, start, starts[:last], 0, gso_size) if last else []
    return segments + _emit_udp(packet, start, starts[last:], last, len(packet) - starts[last])


def _emit_udp(packet: bytes, start: int, starts: range, index: int, size: int) -> list[bytes]:
    """Return the segments from number `index`, each with `size` bytes of payload."""
    ip = _IpWords(packet, start, start + 8 + size)
    front, between, second, step, total = ip.front, ip.between, ip.second, ip.step, ip.total
    middle, length = packet[12 : start + 4], 8 + size
    pseudo = _word(packet, start + 6) - (len(packet) - start) + length
    constant = pseudo + length + (residue(packet[start : start + 4]) << 8)
    pack = struct.Struct(f">4sH4sH{len(middle)}sHH{size}s").pack
    word, segments = ip.first + index * step, []
    for at in starts:
        data = packet[at : at + size]
        checksum = -(constant + (residue(data) << 8)) % 0xFFFF or 0xFFFF
        word &= 0xFFFF
        if step:
            second = -(total + word) % 0xFFFF
        segments.append(pack(front, word, between, second, middle, length, checksum, data))
        word += step
    return segments
