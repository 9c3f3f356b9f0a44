"""Splitting: one TUN frame in, complete IP packets out.

A super-packet is up to 64 KiB of one TCP or UDP flow under one set of headers, to be cut into segments of `gso_size`
bytes of payload. The headers of its segments differ in a few words only: IPv4 identification, lengths in the last
segment, TCP sequence number and flags, checksums. The rest is taken out of the loop: a run is a row of segments of one
size and with the same flags, and what is constant over it is computed once, its part of the checksums included. A
segment then costs one sum over its payload and one `pack` that lays down headers and payload together.

The transport checksum starts from the pseudo-header's sum, which the kernel leaves in the checksum field, so that the
final destination of a source route needs no special case. Offsets in the virtio header are compared with what the
packet's own headers say, and never used in their place; its header length is not read at all.
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
"""A TCP peer can push the segments of Linux down to 8 bytes of payload (TCP_MIN_GSO_SIZE): 8190 segments in the largest
super-packet. More than that comes from no sane kernel, and would only multiply memory."""

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_V4_FRAGMENT = 0x3FFF  # more-fragments bit and offset
_PROTOCOLS = {GSO_TCPV4: PROTOCOL_TCP, GSO_TCPV6: PROTOCOL_TCP, GSO_UDP_L4: PROTOCOL_UDP}
_VERSIONS = {GSO_TCPV4: (4,), GSO_TCPV6: (6,), GSO_UDP_L4: (4, 6)}
_CHECKSUM_OFFSETS = {PROTOCOL_TCP: 16, PROTOCOL_UDP: 6}
_HEADER_SIZES = {PROTOCOL_TCP: TCP_HEADER_SIZE, PROTOCOL_UDP: UDP_HEADER_SIZE}


def split(frame: Buffer) -> list[bytes]:
    """The complete IP packets of one TUN frame, in order, all checksums filled in.

    Raises OffloadError, for this whole frame, when header and packet do not fit each other. A packet without
    offloads is passed on as it is; that it is an IP packet is for the caller to check.
    """
    header = VirtioHeader.parse(frame)
    packet = bytes(frame[VIRTIO_HEADER_SIZE:])
    if not packet:
        raise OffloadError("a TUN frame holds no packet")
    if header.gso_type != GSO_NONE:
        return _split_super_packet(packet, header)
    return [complete(packet, header.csum_start, header.csum_offset) if header.flags & F_NEEDS_CSUM else packet]


def complete(packet: bytes, csum_start: int, csum_offset: int) -> bytes:
    """Finish the partial checksum of one packet; raises OffloadError when its field lies beyond the packet.

    0 is written as 0xFFFF, its other form, because in UDP 0 means no checksum.
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
    place = (header.csum_start, header.csum_offset)
    if not header.flags & F_NEEDS_CSUM or place != (start, _CHECKSUM_OFFSETS[protocol]):
        raise OffloadError("a super-packet's checksum is not where its headers say")
    return (_split_tcp if protocol == PROTOCOL_TCP else _split_udp)(packet, start, header.gso_size)


def _transport_start(packet: bytes, protocol: int) -> int:
    """The offset of the transport header, if it is one of `protocol`, as the IP headers tell."""
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
    """Where the payload of each segment starts. A super-packet without payload is one segment."""
    if gso_size == 0:
        raise OffloadError("a super-packet has segments of size 0")
    starts = range(payload, max(len(packet), payload + 1), gso_size)
    if len(starts) > MAX_SEGMENTS:
        raise OffloadError(f"a super-packet has more than {MAX_SEGMENTS} segments")
    return starts


class _IpWords:
    """The first 12 bytes of the IP header of segments of one size: 4 constant bytes, a word, 4 bytes, a word.

    In IPv4 the words are identification and header checksum, which differ per segment (`step` 1). In IPv6 they are the
    payload length and a piece of the source address, and constant.
    """

    __slots__ = ("between", "first", "front", "second", "step", "total")

    def __init__(self, packet: bytes, start: int, length: int) -> None:
        """`length` is that of the whole segment; `total` the sum of the IPv4 header without its two words."""
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
    """CWR stays on the first segment only, FIN and PSH on the last (as the kernel's tcp_gso_segment does)."""
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
        """Segments number `index` and following, with `size` bytes of payload each and these flags."""
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
    # One segment may be smaller than `gso_size` says, which then fits no header.
    segments = _emit_udp(packet, start, starts[:last], 0, gso_size) if last else []
    return segments + _emit_udp(packet, start, starts[last:], last, len(packet) - starts[last])


def _emit_udp(packet: bytes, start: int, starts: range, index: int, size: int) -> list[bytes]:
    """Segments number `index` and following, with `size` bytes of payload each."""
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
