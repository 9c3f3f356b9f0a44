"""The fields of IPv4 (RFC 791) and IPv6 (RFC 8200) packets that a tunnel reads, and the ICMP errors that it returns.

Functions accept any bytes. For invalid packets they return None or 0 and never raise, because every packet passes here.
"""

from __future__ import annotations

import ipaddress
import struct

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import checksum, pseudo_header_sum, update

IPV4_HEADER_SIZE = 20
"""Without options."""
IPV6_HEADER_SIZE = 40
TCP_HEADER_SIZE = 20
"""Without options."""
UDP_HEADER_SIZE = 8
MAX_PACKET_SIZE = 65_535
"""The maximum of the IPv4 length field. The IPv6 field excludes the header, but a TUN passes no longer packets
either."""
IPV6_MINIMUM_MTU = 1280
"""The minimum MTU of every IPv6 link (RFC 8200 5). Below it, the kernel silently disables IPv6 on an interface."""

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

HOP_BY_HOP = 0
FRAGMENT = 44
WALKABLE_EXTENSIONS = frozenset({HOP_BY_HOP, 43, 60, 135})
"""Hop-by-hop options, routing, destination options, mobility. The second byte of each is its length in units of 8
bytes, not counting the first 8 (RFC 8200 4.2, RFC 6275 6.1.1), so one step finds the next header. In a super-packet,
only these may precede the transport header: the kernel does not segment behind others, and a fragment is never a
super-packet."""
QUOTABLE_EXTENSIONS = WALKABLE_EXTENSIONS | {FRAGMENT}
"""Headers to skip when deciding whether a packet may be answered by an ICMP error: a first fragment may be (RFC 4443
2.4 e). A fragment header has 8 bytes and no length field."""
ANY_EXTENSION = QUOTABLE_EXTENSIONS | {51, 139, 140}
"""Also authentication, HIP and shim6, which are never walked; the length field of authentication has another unit. A
packet with any of these may belong to any flow, so it must not be overtaken."""

ECN_MASK = 3
ECN_NOT_ECT = 0
ECN_ECT1 = 1
ECN_ECT0 = 2
ECN_CE = 3

_ICMP_DESTINATION_UNREACHABLE = 3
_ICMP_HOST_UNREACHABLE = 1
_ICMPV6_DESTINATION_UNREACHABLE = 1
_ICMPV6_NO_ROUTE = 0
_ICMPV6_ADDRESS_UNREACHABLE = 3
_ICMPV6_REDIRECT = 137
_ICMP_QUERIES = frozenset({0, 8, 13, 14, 15, 16, 17, 18})
"""The ICMP types that are not errors (RFC 1122 3.2.2). Unknown types count as errors."""
_V4_NO_HOST = frozenset({0, 127})
_V4_MULTICAST = 224
"""The first byte at and above which an address is multicast, reserved, or the limited broadcast."""
_V6_UNSPECIFIED = bytes(16)
_V6_LOOPBACK = bytes(15) + b"\x01"
_ICMP_QUOTE = 548
"""Quote as much of the packet as fits into an error of 576 bytes (RFC 1812 4.3.2.3)."""


def version_of(packet: Buffer) -> int:
    """Return the version nibble, which is 4 or 6 in an IP packet, or 0 for an empty packet."""
    return packet[0] >> 4 if len(packet) else 0


def destination_of(packet: Buffer) -> bytes | None:
    """Return the destination address (4 or 16 bytes), or None if this is not an IP packet with a complete header."""
    length = len(packet)
    if length >= IPV4_HEADER_SIZE and 0x45 <= packet[0] <= 0x4F:
        return bytes(packet[16:20])
    if length >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        return bytes(packet[24:40])
    return None


def outline_of(packet: bytes) -> tuple[bytes, int, int] | None:
    """Return (destination, protocol, ECN bits) for the outbound path, or None like `destination_of`."""
    if len(packet) >= IPV4_HEADER_SIZE and 0x45 <= packet[0] <= 0x4F:
        return packet[16:20], packet[9], packet[1] & ECN_MASK
    if len(packet) >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        return packet[24:40], packet[6], packet[1] >> 4 & ECN_MASK
    return None


def source_of(packet: Buffer) -> bytes | None:
    """Return the source address (4 or 16 bytes), or None if this is not an IP packet with a complete header."""
    length = len(packet)
    if length >= IPV4_HEADER_SIZE and 0x45 <= packet[0] <= 0x4F:
        return bytes(packet[12:16])
    if length >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        return bytes(packet[8:24])
    return None


def length_of(packet: Buffer) -> int:
    """Return the length that the packet's header claims; padding may follow (rule M47).

    Return 0 if this is not an IP packet, if the claim exceeds the bytes present or is less than the header, or if it is
    a jumbogram (RFC 2675), whose length field is 0 and which no TUN accepts. A claim cannot wrap around.
    """
    present = len(packet)
    if present >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        total = packet[2] << 8 | packet[3]
        return total if IPV4_HEADER_SIZE <= (packet[0] & 15) * 4 <= total <= present else 0
    if present >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        total = (packet[4] << 8 | packet[5]) + IPV6_HEADER_SIZE
        is_jumbo = total == IPV6_HEADER_SIZE and packet[6] == HOP_BY_HOP
        return total if total <= present and not is_jumbo else 0
    return 0


def origin_of(packet: bytes) -> tuple[int, bytes]:
    """Return (`length_of`, source) for the inbound path. The source is meaningless if the length is 0."""
    return length_of(packet), packet[12:16] if packet[:1] < b"\x50" else packet[8:24]


def text_of(address: bytes | None) -> str:
    """Return the canonical text of a 4- or 16-byte address, like the kernel's for a socket; empty for None."""
    return "" if address is None else str(ipaddress.ip_address(address))


def udp_ports(packet: Buffer) -> tuple[int, int] | None:
    """Return (source, destination) of an unfragmented UDP packet without IPv6 extension headers, otherwise None."""
    if len(packet) >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        if packet[9] != PROTOCOL_UDP or packet[6] & 0x1F or packet[7]:
            return None
        offset = (packet[0] & 15) * 4
    elif len(packet) >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        offset = IPV6_HEADER_SIZE
        if packet[6] != PROTOCOL_UDP:
            return None
    else:
        return None
    if len(packet) < offset + 4:
        return None
    return packet[offset] << 8 | packet[offset + 1], packet[offset + 2] << 8 | packet[offset + 3]


def ecn_of(packet: Buffer) -> int:
    """Return the two ECN bits (RFC 3168), or 0 if this is not an IP packet."""
    if len(packet) < IPV4_HEADER_SIZE:
        return 0
    version = packet[0] >> 4
    return packet[1] & ECN_MASK if version == 4 else packet[1] >> 4 & ECN_MASK if version == 6 else 0


def is_unheeded(outer: int, inner: int) -> bool:
    """Return whether an outer congestion mark is lost, because the inner packet's sender does not use ECN."""
    return outer == ECN_CE and inner == ECN_NOT_ECT


def decapsulate_ecn(outer: int, inner: int) -> int:
    """Return the ECN bits to deliver (RFC 6040 section 4.2, figure 4): an outer congestion mark is copied inwards.

    Like the kernel, and unlike the figure, an inner packet that cannot carry the mark is delivered unchanged. A correct
    sender copies the inner bits to the outer header, so only a broken path can have set this mark, and dropping the
    packet would cut the peers off.
    """
    if outer == ECN_CE:
        return ECN_NOT_ECT if inner == ECN_NOT_ECT else ECN_CE
    return ECN_ECT1 if (outer, inner) == (ECN_ECT1, ECN_ECT0) else inner


def with_ecn(packet: Buffer, ecn: int) -> bytes:
    """Return the IP packet with other ECN bits.

    The IPv4 header checksum is updated: if it was wrong, it stays wrong.
    """
    changed = bytearray(packet)
    if changed[0] >> 4 == 4:
        before = int.from_bytes(changed[:2], "big")
        changed[1] = changed[1] & ~ECN_MASK | ecn
        field = update(int.from_bytes(changed[10:12], "big"), before, int.from_bytes(changed[:2], "big"))
        changed[10:12] = field.to_bytes(2, "big")
    else:
        changed[1] = changed[1] & 0xCF | ecn << 4
    return bytes(changed)


def unreachable(packet: Buffer, *, no_route: bool) -> bytes | None:
    """Return the ICMP error for a packet without a route or whose destination cannot be reached (rule M46).

    The source of the error is the unreachable address: only this address is certain to be routed to the tunnel's
    interface. Return None if the packet must not be answered (RFC 1122 3.2.2, RFC 4443 2.4 e).
    """
    whole = bytes(packet[: length_of(packet)])
    if not whole:
        return None
    if whole[0] >> 4 == 4:
        return _icmp(whole) if _may_answer_v4(whole) else None
    code = _ICMPV6_NO_ROUTE if no_route else _ICMPV6_ADDRESS_UNREACHABLE
    return _icmpv6(whole, code) if _may_answer_v6(whole) else None


def _may_answer_v4(packet: bytes) -> bool:
    """Return whether an ICMP error may answer the packet.

    Errors, later fragments, multicast or broadcast destinations, and sources that are not a single host get none.
    """
    if packet[12] in _V4_NO_HOST or packet[12] >= _V4_MULTICAST or packet[16] in _V4_NO_HOST:
        return False
    if packet[16] >= _V4_MULTICAST or packet[6] & 0x1F or packet[7]:
        return False
    at = (packet[0] & 15) * 4
    return packet[9] != PROTOCOL_ICMP or (len(packet) > at and packet[at] in _ICMP_QUERIES)


def _may_answer_v6(packet: bytes) -> bool:
    """Return whether an ICMP error may answer the packet.

    Errors, redirects, later fragments, multicast destinations, and sources that are not a single host get none.
    """
    source = packet[8:24]
    if source in (_V6_UNSPECIFIED, _V6_LOOPBACK) or 0xFF in (packet[8], packet[24]):
        return False
    protocol, at = packet[6], IPV6_HEADER_SIZE
    while protocol in QUOTABLE_EXTENSIONS and at + 8 <= len(packet):
        if protocol == FRAGMENT and (packet[at + 2] or packet[at + 3] & 0xF8):
            return False
        size = 8 if protocol == FRAGMENT else 8 * (packet[at + 1] + 1)
        protocol, at = packet[at], at + size
    if protocol in QUOTABLE_EXTENSIONS:
        return False
    return protocol != PROTOCOL_ICMPV6 or (len(packet) > at and packet[at] >= 128 and packet[at] != _ICMPV6_REDIRECT)


def _icmp(packet: bytes) -> bytes:
    source, destination = packet[12:16], packet[16:20]
    body = struct.pack(">BBHI", _ICMP_DESTINATION_UNREACHABLE, _ICMP_HOST_UNREACHABLE, 0, 0) + packet[:_ICMP_QUOTE]
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    # Precedence is "internetwork control" (RFC 1812 4.3.2.5). With DF set, the identification need not be unique.
    start = struct.pack(">BBHHHBB", 0x45, 0xC0, IPV4_HEADER_SIZE + len(body), 0, 0x4000, 64, PROTOCOL_ICMP)
    header_sum = checksum(start + destination + source)
    return start + header_sum.to_bytes(2, "big") + destination + source + body


def _icmpv6(packet: bytes, code: int) -> bytes:
    source, destination = packet[8:24], packet[24:40]
    quote = packet[: IPV6_MINIMUM_MTU - IPV6_HEADER_SIZE - 8]
    body = struct.pack(">BBHI", _ICMPV6_DESTINATION_UNREACHABLE, code, 0, 0) + quote
    total = pseudo_header_sum(destination + source, PROTOCOL_ICMPV6, len(body))
    body = body[:2] + checksum(body, total).to_bytes(2, "big") + body[4:]
    return struct.pack(">IHBB16s16s", 6 << 28, len(body), PROTOCOL_ICMPV6, 64, destination, source) + body
