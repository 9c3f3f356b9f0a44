"""Coalescing: turn received IP packets into TUN frames, merging adjacent packets of a flow into super-packets.

Theory of operation. The coalescer merges only what the kernel's own GRO would merge: packets of one TCP flow, adjacent
in sequence, with equal acknowledgment number, window, options, TOS, TTL and DF bit; or packets of one UDP flow. All
have the same size, except that the last may be smaller, and only the last may have PSH set. Splitting the super-packet
again yields the same packets, except that the identification of an IPv4 packet with DF set may differ, as RFC 6864
permits.

The kernel trusts a super-packet's checksums, so both checksums of every packet are verified before it is merged. A
packet that arrived corrupt is passed on alone, and its receiver detects the fault.

A flow has at most one open group. A packet that does not fit its flow's group closes the group, which preserves the
order within the flow. A packet whose flow is unknown (fragments, IP options, IPv6 extension headers) closes all groups.

Speed. All work is done in `take`, and a packet alone in its batch is not even parsed. A group knows the header of its
next packet: `expected` is that header as one integer, with the varying words masked out, and grows by a constant per
packet (sequence number, identification). One mask and one comparison therefore check a dozen fields at once, and one
division checks the sum of the whole packet. All other packets (the last of a group, the first of another) take the slow
path, which parses. Groups end before sequence number or identification would wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import checksum, pseudo_header_sum, residue
from wyrmhole.wire.datagram import MAX_TRAIN_SEGMENTS
from wyrmhole.wire.ip import (
    ANY_EXTENSION,
    IPV4_HEADER_SIZE,
    IPV6_HEADER_SIZE,
    MAX_PACKET_SIZE,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_HEADER_SIZE,
    UDP_HEADER_SIZE,
)
from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, PLAIN_HEADER, VirtioHeader

MAX_TCP_SEGMENTS = 1023
"""A gathering write accepts 1024 parts (IOV_MAX): one per segment, and one for the headers."""

_ACK, _PSH = 0x10, 0x08
_UNPREPARED, _CLOSED = -1, -2

_Flow = tuple[int, bytes]
"""The protocol, and the packet's bytes of addresses and ports."""


@dataclass(slots=True)
class Frame:
    """One frame to write to the TUN.

    `parts` has the virtio header (followed by rewritten packet headers if merged), then views of packets. `packets` has
    the packets unmerged, to be written one by one if the kernel refuses the super-packet.
    """

    parts: list[Buffer]
    packets: list[Buffer]


def plain(packet: Buffer) -> Frame:
    """Return the frame of one packet without offloads."""
    return Frame([PLAIN_HEADER, packet], [packet])


class Coalescer:
    """Merges the packets of a batch. `tso` and `uso` tell which super-packets the kernel accepts; both may change.

    Packets are complete IP packets, trimmed to their length. They may be views into a receive buffer. Frames refer to
    them, so the buffer must not change until the frames that `take` returned are written.
    """

    def __init__(self, *, tso: bool, uso: bool) -> None:
        self.tso, self.uso = tso, uso
        self._protocols: frozenset[int] = frozenset()
        self._pending: list[Buffer] = []
        self._open: dict[_Flow, _Group] = {}
        self.add: Callable[[Buffer], None] = self._pending.append
        """Add one packet to the batch; order matters."""

    def take(self) -> list[Frame]:
        """Return the frames of all packets since the last call, in the order of their first packets."""
        if len(self._pending) == 1:
            return [plain(self._pending.pop())]
        merges = self.tso or self.uso
        frames = self._coalesce() if merges else [plain(packet) for packet in self._pending]
        self._pending.clear()
        return frames

    def _coalesce(self) -> list[Frame]:
        self._protocols = frozenset([PROTOCOL_TCP] * self.tso + [PROTOCOL_UDP] * self.uso)
        units: list[_Group | Frame] = []
        group: _Group | None = None
        for packet in self._pending:
            raw = bytes(packet)
            if group is None or not group.append(raw, packet):
                group = self._place(raw, packet, units)
        self._open.clear()
        return [unit if isinstance(unit, Frame) else unit.emit() for unit in units]

    def _place(self, raw: bytes, packet: Buffer, units: list[_Group | Frame]) -> _Group | None:
        """Add a packet to its group or as a frame. Return the group that the next packet may continue."""
        flow = self._flow(raw)
        if flow is None:
            units.append(plain(packet))
            return None
        header = _header_length(raw, flow[0])
        group = self._open.pop(flow, None)
        if header == 0:
            units.append(plain(packet))
            return None
        if group is None or not group.join(raw, packet, header):
            group = _Group(raw, packet, flow[0], header)
            units.append(group)
        if not group.is_closed:
            self._open[flow] = group
        return group

    def _flow(self, raw: bytes) -> _Flow | None:
        """Return the packet's flow, or None if the packet cannot be merged."""
        version = raw[0] >> 4 if raw else 0
        if version == 4 and len(raw) >= IPV4_HEADER_SIZE:
            protocol, is_plain = raw[9], raw[0] == 0x45 and not (raw[6] & 0xBF or raw[7])
            length, ports = _word(raw, 2), raw[12:24]
        elif version == 6 and len(raw) >= IPV6_HEADER_SIZE:
            protocol, is_plain = raw[6], True
            length, ports = _word(raw, 4) + IPV6_HEADER_SIZE, raw[8:44]
        else:
            return None
        if protocol in self._protocols and is_plain and length == len(raw):
            return protocol, ports
        if protocol in self._protocols or (version == 6 and protocol in ANY_EXTENSION):
            self._open.clear()
        return None


def _word(raw: bytes, at: int) -> int:
    return raw[at] << 8 | raw[at + 1]


def _header_length(raw: bytes, protocol: int) -> int:
    """Return the length of IP and transport header together, or 0 if the packet may not be merged."""
    start = IPV4_HEADER_SIZE if raw[0] >> 4 == 4 else IPV6_HEADER_SIZE
    if protocol == PROTOCOL_UDP:
        fits = (
            len(raw) > start + UDP_HEADER_SIZE and _word(raw, start + 4) == len(raw) - start and _word(raw, start + 6)
        )
        return start + UDP_HEADER_SIZE if fits else 0
    if len(raw) <= start + TCP_HEADER_SIZE or raw[start + 13] & ~_PSH != _ACK:
        return 0
    header = start + (raw[start + 12] >> 4) * 4
    return header if start + TCP_HEADER_SIZE <= header < len(raw) else 0


class _Layout:
    """Masks over the headers of one shape, as integers of `header` bytes in network order.

    `strict` covers everything in which the next packet of a group must agree. `loose` leaves out lengths and PSH, in
    which the last packet may differ.
    """

    __slots__ = ("header", "identification_unit", "loose", "protocol", "sequence_unit", "start", "strict", "version")

    def __init__(self, version: int, protocol: int, header: int, is_atomic: bool) -> None:
        self.version, self.protocol, self.header = version, protocol, header
        self.start = start = IPV4_HEADER_SIZE if version == 4 else IPV6_HEADER_SIZE
        mask = bytearray(b"\xff" * header)
        at = start + (16 if protocol == PROTOCOL_TCP else 6)
        mask[at : at + 2] = bytes(2)
        if version == 4:
            mask[10:12] = bytes(2)
            if is_atomic:
                mask[4:6] = bytes(2)
        self.strict = int.from_bytes(mask, "big")
        at = 2 if version == 4 else 4
        mask[at : at + 2] = bytes(2)
        if protocol == PROTOCOL_TCP:
            mask[start + 13] = 0xFF ^ _PSH
        else:
            mask[start + 4 : start + 6] = bytes(2)
        self.loose = int.from_bytes(mask, "big")
        self.sequence_unit = 1 << 8 * (header - start - 8) if protocol == PROTOCOL_TCP else 0
        self.identification_unit = 1 << 8 * (header - 6) if version == 4 and not is_atomic else 0


_layout = cache(_Layout)  # there are at most 48 shapes


class _Group:
    """Packets of one flow that become one frame.

    `raw` has the bytes of the first packet, `payload` the payload's size.
    """

    __slots__ = ("capacity", "expected", "flags", "layout", "packets", "payload", "raw", "residue", "step")

    def __init__(self, raw: bytes, packet: Buffer, protocol: int, header: int) -> None:
        self.layout = _layout(raw[0] >> 4, protocol, header, raw[0] >> 4 == 4 and raw[6] & 0x40 != 0)
        self.raw, self.packets, self.payload = raw, [packet], len(raw) - header
        self.flags = raw[self.layout.start + 13] if protocol == PROTOCOL_TCP else 0
        self.expected = _CLOSED if self.flags & _PSH else _UNPREPARED
        self.capacity = self.residue = self.step = 0

    @property
    def is_closed(self) -> bool:
        return self.expected == _CLOSED

    def append(self, raw: bytes, packet: Buffer) -> bool:
        """Fast path: add the packet if it is the next, of the same size, and intact. Return whether it was added."""
        layout = self.layout
        if (
            len(raw) != len(self.raw)
            or int.from_bytes(raw[: layout.header], "big") & layout.strict != self.expected
            or residue(raw) != self.residue
            or (layout.version == 4 and residue(raw[:20]))
            or (layout.protocol == PROTOCOL_UDP and not _word(raw, layout.start + 6))
        ):
            return False
        self.packets.append(packet)
        self.expected = self.expected + self.step if len(self.packets) < self.capacity else _CLOSED
        return True

    def join(self, raw: bytes, packet: Buffer, header: int) -> bool:
        """Slow path: add a packet of the same flow, the second of a group or its last. Return whether it was added."""
        if header != self.layout.header or self.is_closed:
            return False
        if self.expected == _UNPREPARED and not self._prepare():
            return False
        return self.append(raw, packet) or self._append_last(raw, packet)

    def _prepare(self) -> bool:
        """Verify the first packet and compute what the following ones must look like."""
        raw, layout = self.raw, self.layout
        sequence = int.from_bytes(raw[layout.start + 4 : layout.start + 8], "big")
        capacity = (MAX_PACKET_SIZE - layout.header) // self.payload
        if layout.sequence_unit:
            capacity = min(capacity, MAX_TCP_SEGMENTS, (0xFFFFFFFF - sequence) // self.payload + 1)
        else:
            capacity = min(capacity, MAX_TRAIN_SEGMENTS)
        if layout.identification_unit:
            capacity = min(capacity, 0x10000 - _word(raw, 4))
        if capacity < 2 or not _is_intact(raw, layout):
            self.expected = _CLOSED
            return False
        self.capacity, self.residue = capacity, _intact_residue(raw, layout)
        self.step = self.payload * layout.sequence_unit + layout.identification_unit
        self.expected = (int.from_bytes(raw[: layout.header], "big") & layout.strict) + self.step
        return True

    def _append_last(self, raw: bytes, packet: Buffer) -> bool:
        layout = self.layout
        head = int.from_bytes(raw[: layout.header], "big")
        if (head ^ self.expected) & layout.loose or len(raw) > len(self.raw) or not _is_intact(raw, layout):
            return False
        self.packets.append(packet)
        self.expected = _CLOSED
        if layout.protocol == PROTOCOL_TCP:
            self.flags |= raw[layout.start + 13]
        return True

    def emit(self) -> Frame:
        if len(self.packets) == 1:
            return plain(self.packets[0])
        header = self.layout.header
        parts: list[Buffer] = [self._headers()]
        parts += [packet[header:] for packet in self.packets]
        return Frame(parts, self.packets)

    def _headers(self) -> bytes:
        layout, count, last = self.layout, len(self.packets), len(self.packets[-1])
        start, is_tcp = layout.start, layout.protocol == PROTOCOL_TCP
        length = (count - 1) * self.payload + last
        head = bytearray(self.raw[: layout.header])
        if layout.version == 4:
            head[2:4] = length.to_bytes(2, "big")
            head[10:12] = bytes(2)
            head[10:12] = checksum(head[:20]).to_bytes(2, "big")
            kind, addresses = GSO_TCPV4, head[12:20]
        else:
            head[4:6] = (length - 40).to_bytes(2, "big")
            kind, addresses = GSO_TCPV6, head[8:40]
        if is_tcp:
            head[start + 13] = self.flags
        else:
            kind = GSO_UDP_L4
            head[start + 4 : start + 6] = (length - start).to_bytes(2, "big")
        offset = 16 if is_tcp else 6
        partial = pseudo_header_sum(addresses, layout.protocol, length - start)
        head[start + offset : start + offset + 2] = partial.to_bytes(2, "big")
        return VirtioHeader(F_NEEDS_CSUM, kind, layout.header, self.payload, start, offset).emit() + head


def _intact_residue(raw: bytes, layout: _Layout) -> int:
    """Return the residue of the whole packet if its transport checksum is valid. An IPv4 header must be intact.

    Transport and pseudo-header sum to zero, and so does an IPv4 header. Byte-swapping is a multiplication by 256.
    """
    length = (layout.protocol + len(raw) - layout.start) << 8
    if layout.version == 4:
        return -(residue(raw[12:20]) + length) % 0xFFFF
    return (residue(raw[:8]) - length) % 0xFFFF


def _is_intact(raw: bytes, layout: _Layout) -> bool:
    if layout.version == 4 and residue(raw[:20]):
        return False
    return residue(raw) == _intact_residue(raw, layout)
