"""Frames of a TUN with offloads: the virtio-net header, super-packets split into packets, packets joined again.

With offloads the kernel hands over up to 64 KiB of one TCP or UDP flow behind a single header, with a checksum that is
only begun, and takes the same in return. That saves most of the cost per packet on both sides. A peer wants ordinary
packets, so `split` cuts (like the kernel's segmentation) and `Coalescer` joins (like its GRO).

    split:    what differs between segments is a few words of the header; the sums over the rest are computed once.
    join:     headers are compared as integers under a mask that leaves those words out; both checksums of each packet
              are verified first, because the joined one gets fresh ones and a corrupt packet must stay corrupt.

The header is virtio_net_hdr of 10 bytes in native byte order (virtio 1.2, 5.1.6): flags, gso_type, hdr_len, gso_size,
csum_start, csum_offset. The kernel does not vouch for hdr_len; it is computed from the packet.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import complement, ones_sum, pseudo_header_sum
from wyrmhole.wire.ip import PROTOCOL_TCP, PROTOCOL_UDP

VIRTIO_HEADER_SIZE = 10
NEEDS_CSUM = 1
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

ZERO_HEADER = bytes(VIRTIO_HEADER_SIZE)
MAX_PACKET = 65_535
MAX_UDP_SEGMENTS = 64
"""The kernel refuses longer UDP super-packets (UDP_MAX_SEGMENTS before 6.9)."""
MAX_SEGMENTS = 1024
"""64 KiB at the smallest MSS that anyone uses (64): what has more is not worth its memory."""

_VIRTIO = struct.Struct("=BBHHHH")
_TCP_FIN, _TCP_PSH, _TCP_ACK, _TCP_CWR = 0x01, 0x08, 0x10, 0x80


class OffloadError(ValueError):
    """The frame's header does not fit its packet; this frame is lost, others are not concerned."""


class VirtioHeader(NamedTuple):
    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def parse(cls, frame: Buffer) -> VirtioHeader:
        """The first 10 bytes of a frame. Raises OffloadError."""
        if len(frame) < VIRTIO_HEADER_SIZE:
            raise OffloadError("the frame is shorter than its header")
        return cls(*_VIRTIO.unpack_from(frame))

    def emit(self) -> bytes:
        return _VIRTIO.pack(*self)


# Splitting


def split(frame: memoryview) -> list[bytes]:
    """The complete IP packets of a frame, in order, every checksum final. Raises OffloadError."""
    header = VirtioHeader.parse(frame)
    packet = frame[VIRTIO_HEADER_SIZE:]
    kind = header.gso_type & ~GSO_ECN
    if kind == GSO_NONE:
        return [_finish_checksum(packet, header) if header.flags & NEEDS_CSUM else bytes(packet)]
    version = packet[0] >> 4 if len(packet) >= 20 else 0
    _check(version == (6 if kind == GSO_TCPV6 else 4 if kind == GSO_TCPV4 else version), "version and type differ")
    _check(version in (4, 6), "no IP packet")
    if kind in (GSO_TCPV4, GSO_TCPV6):
        return _split_tcp(packet, version, header)
    _check(kind == GSO_UDP_L4, "unknown segmentation type")
    return _split_udp(packet, version, header)


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise OffloadError(problem)


def _finish_checksum(packet: memoryview, header: VirtioHeader) -> bytes:
    """The field holds the pseudo header's sum; add what follows csum_start and complement."""
    at = header.csum_start + header.csum_offset
    _check(at + 2 <= len(packet), "the checksum lies beyond the packet")
    finished = bytearray(packet)
    value = complement(ones_sum(packet[header.csum_start :]))
    is_udp = header.csum_offset == 6
    finished[at : at + 2] = (value or (0xFFFF if is_udp else 0)).to_bytes(2, "big")
    return bytes(finished)


def _transport_offset(packet: memoryview, version: int, header: VirtioHeader, protocol: int) -> int:
    """Where the transport header begins: csum_start, if that is possible."""
    offset = header.csum_start
    if version == 4:
        _check(offset == (packet[0] & 15) * 4 >= 20, "csum_start is not the end of the IPv4 header")
        _check(packet[9] == protocol, "protocol and type differ")
        _check(not packet[6] & 0x3F and not packet[7], "a fragment cannot be segmented")
    else:
        _check(offset >= 40, "csum_start lies in the IPv6 header")
        _check(offset > 40 or packet[6] == protocol, "protocol and type differ")
    return offset


def _segment_sizes(payload: int, size: int) -> int:
    _check(size > 0 and payload > 0, "nothing to segment")
    count = -(-payload // size)
    _check(count <= MAX_SEGMENTS, "too many segments")
    return count


_tcp_layouts: dict[tuple[int, int, int], struct.Struct] = {}


def _tcp_layout(version: int, offset: int, size: int) -> struct.Struct:
    """The header as the words that differ between segments and the stretches that do not."""
    layout = _tcp_layouts.get((version, offset, size))
    if layout is None:
        rest = size - offset - 18
        tail = f"I5sB2sH{rest}s"
        middle = f">2sHH4sH{offset - 8}s" if version == 4 else f">4sH{offset - 2}s"
        layout = _tcp_layouts[version, offset, size] = struct.Struct(middle + tail)
    return layout


def _split_tcp(packet: memoryview, version: int, header: VirtioHeader) -> list[bytes]:
    length = len(packet)
    offset = _transport_offset(packet, version, header, PROTOCOL_TCP)
    _check(offset + 20 <= length, "the TCP header is cut off")
    size = offset + (packet[offset + 12] >> 4) * 4
    _check(offset + 20 <= size <= length, "the TCP header is cut off")
    mss = header.gso_size
    count = _segment_sizes(length - size, mss)
    layout = _tcp_layout(version, offset, size)
    addresses = packet[12:20] if version == 4 else packet[8:40]
    # Everything of the TCP header but sequence number, flags and checksum; the pseudo header without its length.
    fixed = ones_sum(packet[offset : offset + 4]) + ones_sum(packet[offset + 8 : offset + 12])
    fixed += (packet[offset + 12] << 8) + ones_sum(packet[offset + 14 : offset + 16])
    fixed += ones_sum(packet[offset + 18 : size]) + pseudo_header_sum(addresses, PROTOCOL_TCP, size - offset)
    if version == 4:
        head, _, identity, middle, _, ports, sequence, ack, flags, window, _, rest = layout.unpack_from(packet)
        ip_fixed = ones_sum(packet[:2]) + ones_sum(packet[6:10]) + ones_sum(packet[12:offset])
    else:
        head, _, ports, sequence, ack, flags, window, _, rest = layout.unpack_from(packet)
        identity = ip_fixed = 0
        middle = b""
    pack, join, from_bytes = layout.pack, b"".join, int.from_bytes
    inner_flags = flags & ~(_TCP_FIN | _TCP_PSH)
    segments = []
    for number in range(count):
        start = size + number * mss
        payload = packet[start : start + mss]
        chunk = len(payload)
        now_flags = flags if count == 1 else inner_flags
        if number == count - 1:
            now_flags = flags
        if number:
            now_flags &= ~_TCP_CWR
        # ones_sum, inline: this line runs for every packet.
        value = from_bytes(payload, "little")
        for half, mask in _steps(chunk):
            value = (value >> half) + (value & mask)
        value %= 0xFFFF
        total = fixed + (value >> 8 | (value & 0xFF) << 8) + (sequence >> 16) + (sequence & 0xFFFF) + now_flags + chunk
        tcp_sum = 0xFFFF - (total % 0xFFFF or 0xFFFF)
        if version == 4:
            word = size + chunk
            ip_sum = 0xFFFF - ((ip_fixed + word + identity) % 0xFFFF or 0xFFFF)
            built = pack(head, word, identity, middle, ip_sum, ports, sequence, ack, now_flags, window, tcp_sum, rest)
            identity = identity + 1 & 0xFFFF
        else:
            word = size + chunk - 40
            built = pack(head, word, ports, sequence, ack, now_flags, window, tcp_sum, rest)
        segments.append(join((built, payload)))
        sequence = sequence + chunk & 0xFFFFFFFF
    return segments


def _split_udp(packet: memoryview, version: int, header: VirtioHeader) -> list[bytes]:
    length = len(packet)
    offset = _transport_offset(packet, version, header, PROTOCOL_UDP)
    size = offset + 8
    _check(size <= length, "the UDP header is cut off")
    chunk_size = header.gso_size
    count = _segment_sizes(length - size, chunk_size)
    addresses = packet[12:20] if version == 4 else packet[8:40]
    fixed = ones_sum(addresses) + PROTOCOL_UDP + ones_sum(packet[offset : offset + 4])
    first = bytearray(packet[:size])
    identity = packet[4] << 8 | packet[5]
    segments = []
    for number in range(count):
        start = size + number * chunk_size
        payload = packet[start : start + chunk_size]
        udp_length = len(payload) + 8
        struct.pack_into(">HH", first, offset + 4, udp_length, 0)
        # The length counts twice: in the pseudo header and in the UDP header.
        value = complement(fixed + 2 * udp_length + ones_sum(payload)) or 0xFFFF
        struct.pack_into(">H", first, offset + 6, value)
        if version == 4:
            struct.pack_into(">HH", first, 2, offset + udp_length, identity + number & 0xFFFF)
            first[10:12] = bytes(2)
            struct.pack_into(">H", first, 10, complement(ones_sum(first[:offset])))
        else:
            struct.pack_into(">H", first, 4, offset + udp_length - 40)
        segments.append(bytes(first) + payload)
    return segments


def _steps(length: int) -> tuple[tuple[int, int], ...]:
    return _STEPS.get(length) or _remember_steps(length)


_STEPS: dict[int, tuple[tuple[int, int], ...]] = {}


def _remember_steps(length: int) -> tuple[tuple[int, int], ...]:
    """How to fold an integer of this many bytes (see checksum)."""
    steps = []
    bits = length * 8
    while bits > 1536:
        half = (bits // 2 + 15) // 16 * 16
        steps.append((half, (1 << half) - 1))
        bits = half + 1
    if len(_STEPS) >= 1024:
        _STEPS.clear()
    _STEPS[length] = tuple(steps)
    return _STEPS[length]


# Joining


class Frame(NamedTuple):
    """`parts` gathered make one frame for Tun.write. `packets` are what it was made of, for when the kernel refuses."""

    parts: list[Buffer]
    packets: list[Buffer]


class _Group:
    """Packets of one flow that follow each other."""

    __slots__ = (
        "closed",
        "header",
        "header_size",
        "is_tcp",
        "masked",
        "next_sequence",
        "offset",
        "packets",
        "payload_size",
        "push",
        "total",
        "version",
    )

    def __init__(self, packet: Buffer) -> None:
        self.packets: list[Buffer] = [packet]
        self.closed = True


class Coalescer:
    """Feed packets of one batch with `add`, then `take` the frames. `tso` and `uso` say what the kernel takes.

    A packet joins only the newest group of its flow, so a flow's packets keep their order; flows do not wait for each
    other. What is not plain TCP or UDP (options, fragments, extension headers, other protocols) passes as it is.
    """

    def __init__(self, *, tso: bool, uso: bool) -> None:
        self.tso = tso
        self.uso = uso
        self._packets: list[Buffer] = []

    def add(self, packet: Buffer) -> None:
        """A whole IP packet, trimmed to its length; a view must stay valid until the frames are written."""
        self._packets.append(packet)

    def take(self) -> list[Frame]:
        packets = self._packets
        if not packets:
            return []
        self._packets = []
        if len(packets) == 1 or not (self.tso or self.uso):
            return [Frame([ZERO_HEADER, packet], [packet]) for packet in packets]
        return [_emit(group) for group in self._join(packets)]

    def _join(self, packets: list[Buffer]) -> list[_Group]:
        groups: list[_Group] = []
        newest: dict[bytes, _Group] = {}
        tso, uso = self.tso, self.uso
        for packet in packets:
            shape = _shape_of(packet)
            if shape is None:
                groups.append(_Group(packet))
                continue
            flow, is_tcp, version, offset = shape
            if not (tso if is_tcp else uso):
                groups.append(_Group(packet))
                continue
            group = newest.get(flow)
            if group is not None and not group.closed and _extend(group, packet):
                continue
            group = _Group(packet)
            _begin(group, packet, is_tcp, version, offset)
            newest[flow] = group
            groups.append(group)
        return groups


_Shape = tuple[bytes, bool, int, int]


def _shape_of(packet: Buffer) -> _Shape | None:
    """(addresses and ports, is TCP, version, transport offset) of what may be joined."""
    length = len(packet)
    first = packet[0]
    if first == 0x45:
        protocol = packet[9]
        if packet[6] & 0x3F or packet[7]:
            return None
        if (protocol == PROTOCOL_TCP and length >= 40) or (protocol == PROTOCOL_UDP and length >= 28):
            return bytes(packet[12:24]), protocol == PROTOCOL_TCP, 4, 20
    elif first >> 4 == 6:
        protocol = packet[6]
        if (protocol == PROTOCOL_TCP and length >= 60) or (protocol == PROTOCOL_UDP and length >= 48):
            return bytes(packet[8:44]), protocol == PROTOCOL_TCP, 6, 40
    return None


_masks: dict[tuple[int, bool, int], int] = {}


def _mask(version: int, is_tcp: bool, header_size: int) -> int:
    """Ones over the header words that all packets of a group share, as a big-endian integer."""
    mask = _masks.get((version, is_tcp, header_size))
    if mask is None:
        bits = bytearray(b"\xff" * header_size)
        offset = 20 if version == 4 else 40
        free = [(2, 6), (10, 12)] if version == 4 else [(4, 6)]
        # TCP: sequence number, flags (checked apart), checksum. UDP: length and checksum.
        free += [(offset + 4, offset + 8), (offset + 13, offset + 14), (offset + 16, offset + 18)]
        if not is_tcp:
            free[-3:] = [(offset + 4, offset + 8)]
        for start, end in free:
            bits[start:end] = bytes(end - start)
        mask = _masks[version, is_tcp, header_size] = int.from_bytes(bits, "big")
    return mask


def _begin(group: _Group, packet: Buffer, is_tcp: bool, version: int, offset: int) -> None:
    """Open a group with its first packet, or leave it closed if that one cannot have followers."""
    header_size = offset + ((packet[offset + 12] >> 4) * 4 if is_tcp else 8)
    payload = len(packet) - header_size
    if payload <= 0 or header_size < offset + 8:
        return
    flags = packet[offset + 13] if is_tcp else _TCP_ACK
    if flags != _TCP_ACK or (is_tcp and header_size < offset + 20):
        return
    if not _checksums_hold(packet, version, offset, PROTOCOL_TCP if is_tcp else PROTOCOL_UDP):
        return
    group.closed = False
    group.is_tcp, group.version, group.offset = is_tcp, version, offset
    group.header = bytes(packet[:header_size])
    group.header_size = header_size
    group.masked = int.from_bytes(group.header, "big") & _mask(version, is_tcp, header_size)
    group.payload_size = payload
    group.total = len(packet)
    group.push = False
    if is_tcp:
        group.next_sequence = int.from_bytes(group.header[offset + 4 : offset + 8], "big") + payload & 0xFFFFFFFF


def _extend(group: _Group, packet: Buffer) -> bool:
    """Add the packet if it follows; closes the group if nothing can follow it any more."""
    size, offset = group.header_size, group.offset
    payload = len(packet) - size
    if payload <= 0 or payload > group.payload_size or group.total + payload > MAX_PACKET:
        return False
    header = bytes(packet[:size])
    if int.from_bytes(header, "big") & _mask(group.version, group.is_tcp, size) != group.masked:
        return False
    if group.is_tcp:
        flags = header[offset + 13]
        if flags & ~_TCP_PSH != _TCP_ACK:
            return False
        if int.from_bytes(header[offset + 4 : offset + 8], "big") != group.next_sequence:
            return False
        protocol = PROTOCOL_TCP
    else:
        if len(group.packets) >= MAX_UDP_SEGMENTS:
            return False
        flags, protocol = 0, PROTOCOL_UDP
    if not _checksums_hold(packet, group.version, offset, protocol):
        return False
    group.packets.append(packet)
    group.total += payload
    if group.is_tcp:
        group.next_sequence = group.next_sequence + payload & 0xFFFFFFFF
        group.push = bool(flags & _TCP_PSH)
    group.closed = payload < group.payload_size or group.push
    return True


def _checksums_hold(packet: Buffer, version: int, offset: int, protocol: int) -> bool:
    """Whether header (v4) and transport checksums are right, and the length fields agree with the packet."""
    length = len(packet)
    if protocol == PROTOCOL_UDP:
        at = offset + 4
        if packet[at] << 8 | packet[at + 1] != length - offset or not (packet[offset + 6] or packet[offset + 7]):
            return False
    if version == 4:
        if packet[2] << 8 | packet[3] != length or int.from_bytes(packet[:20], "little") % 0xFFFF:
            return False
        covered = packet[12:]
    else:
        if (packet[4] << 8 | packet[5]) + 40 != length:
            return False
        covered = packet[8:]
    value = int.from_bytes(covered, "little")
    for half, mask in _steps(len(covered)):
        value = (value >> half) + (value & mask)
    value %= 0xFFFF
    return ((value >> 8 | (value & 0xFF) << 8) + protocol + length - offset) % 0xFFFF == 0


def _emit(group: _Group) -> Frame:
    packets = group.packets
    if len(packets) == 1:
        return Frame([ZERO_HEADER, packets[0]], packets)
    size, offset, total = group.header_size, group.offset, group.total
    header = bytearray(group.header)
    if group.version == 4:
        addresses = header[12:20]
        struct.pack_into(">H", header, 2, total)
        header[10:12] = bytes(2)
        struct.pack_into(">H", header, 10, complement(ones_sum(header[:20])))
        kind = GSO_TCPV4
    else:
        addresses = header[8:40]
        struct.pack_into(">H", header, 4, total - 40)
        kind = GSO_TCPV6
    if group.is_tcp:
        protocol, checksum_offset = PROTOCOL_TCP, 16
        if group.push:
            header[offset + 13] |= _TCP_PSH
    else:
        protocol, checksum_offset, kind = PROTOCOL_UDP, 6, GSO_UDP_L4
        struct.pack_into(">H", header, offset + 4, total - offset)
    begun = pseudo_header_sum(addresses, protocol, total - offset)
    struct.pack_into(">H", header, offset + checksum_offset, begun)
    virtio = _VIRTIO.pack(NEEDS_CSUM, kind, size, group.payload_size, offset, checksum_offset)
    parts: list[Buffer] = [virtio + header]
    parts += [packet[size:] for packet in packets]
    return Frame(parts, packets)
