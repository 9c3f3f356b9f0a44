"""The few fields of IPv4 (RFC 791) and IPv6 (RFC 8200) packets that a tunnel looks at, and the errors it sends back.

Functions take any bytes: what does not fit gives None or 0, never an exception, because every packet passes here.
"""

from __future__ import annotations

import ipaddress
import struct

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import checksum, pseudo_header_sum

IPV4_HEADER_SIZE = 20
IPV6_HEADER_SIZE = 40
PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

ECN_MASK = 3
ECN_NOT_ECT = 0
ECN_CE = 3

_ICMP_DESTINATION_UNREACHABLE = 3
_ICMP_HOST_UNREACHABLE = 1
_ICMPV6_DESTINATION_UNREACHABLE = 1
_ICMPV6_NO_ROUTE = 0
_ICMPV6_ADDRESS_UNREACHABLE = 3
_IPV6_MINIMUM_MTU = 1280
_ICMP_QUOTE = 548
"""RFC 1812 4.3.2.3: as much of the packet as fits into 576 bytes."""


def version_of(packet: Buffer) -> int:
    """4, 6, or whatever the nibble says; 0 for nothing."""
    return packet[0] >> 4 if len(packet) else 0


def destination_bytes(packet: Buffer) -> bytes | None:
    """The destination address, 4 or 16 bytes; None if this is no IP packet with a whole header."""
    length = len(packet)
    if length >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        return bytes(packet[16:20])
    if length >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        return bytes(packet[24:40])
    return None


def source_bytes(packet: Buffer) -> bytes | None:
    """The source address, 4 or 16 bytes; None if this is no IP packet with a whole header."""
    length = len(packet)
    if length >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        return bytes(packet[12:16])
    if length >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        return bytes(packet[8:24])
    return None


def length_of(packet: Buffer) -> int:
    """How long the packet says it is, at most what is there: padding may follow. 0: it is no IP packet, or claims
    more than is there, or less than its header. Computed in full width: no claim wraps around."""
    present = len(packet)
    if present >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        total = packet[2] << 8 | packet[3]
        return total if IPV4_HEADER_SIZE <= (packet[0] & 15) * 4 <= total <= present else 0
    if present >= IPV6_HEADER_SIZE and packet[0] >> 4 == 6:
        total = (packet[4] << 8 | packet[5]) + IPV6_HEADER_SIZE
        return total if total <= present else 0
    return 0


def text_of(address: bytes | None) -> str:
    """Canonical text of a 4- or 16-byte address, as the kernel gives it for a socket."""
    return "" if address is None else str(ipaddress.ip_address(address))


def udp_ports(packet: Buffer) -> tuple[int, int] | None:
    """(source, destination) of an unfragmented UDP packet without IPv6 extension headers; else None."""
    if len(packet) >= IPV4_HEADER_SIZE and packet[0] >> 4 == 4:
        offset = (packet[0] & 15) * 4
        if packet[9] != PROTOCOL_UDP or packet[6] & 0x1F or packet[7]:
            return None
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
    """The two ECN bits (RFC 3168); 0 for what is no IP packet."""
    if len(packet) < IPV4_HEADER_SIZE:
        return 0
    return packet[1] & ECN_MASK if packet[0] >> 4 == 4 else packet[1] >> 4 & ECN_MASK


def decapsulate_ecn(outer: int, inner: int) -> int | None:
    """The ECN bits to deliver (RFC 6040 section 4.2, figure 4): congestion met outside goes inside; None: drop,
    because the inner packet's sender does not understand marks."""
    if outer != ECN_CE:
        return 1 if outer == 1 and inner == 2 else inner
    return None if inner == ECN_NOT_ECT else ECN_CE


def with_ecn(packet: Buffer, ecn: int) -> bytes:
    """The packet with other ECN bits and the IPv4 header checksum to match."""
    changed = bytearray(packet)
    if changed[0] >> 4 == 4:
        changed[1] = changed[1] & ~ECN_MASK | ecn
        size = (changed[0] & 15) * 4
        changed[10:12] = bytes(2)
        changed[10:12] = checksum(changed[:size]).to_bytes(2, "big")
    else:
        changed[1] = changed[1] & 0xCF | ecn << 4
    return bytes(changed)


def unreachable(packet: bytes, *, no_route: bool) -> bytes | None:
    """The ICMP error for a packet that cannot go on: no route, or its host cannot be reached (rule M46).

    It comes from the address that could not be reached, the only one that surely routes back into the tunnel's
    interface. None: such a packet gets no answer (RFC 1122 3.2.2, RFC 4443 2.4 e).
    """
    source, destination = source_bytes(packet), destination_bytes(packet)
    if source is None or destination is None or not _may_be_answered(packet, source, destination):
        return None
    if version_of(packet) == 4:
        return _icmp(packet, source, destination)
    return _icmpv6(packet, source, destination, _ICMPV6_NO_ROUTE if no_route else _ICMPV6_ADDRESS_UNREACHABLE)


def _may_be_answered(packet: bytes, source: bytes, destination: bytes) -> bool:
    sender, target = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if sender.is_unspecified or sender.is_multicast or target.is_multicast or destination == b"\xff\xff\xff\xff":
        return False
    if version_of(packet) == 4:
        is_later_fragment = (packet[6] & 0x1F) << 8 | packet[7]
        is_error = packet[9] == PROTOCOL_ICMP and packet[20:21] not in (b"\x08", b"\x00", b"\x0d", b"\x0e")
        return not is_later_fragment and not is_error
    return not (packet[6] == PROTOCOL_ICMPV6 and len(packet) > 40 and packet[40] < 128)


def _icmp(packet: bytes, source: bytes, destination: bytes) -> bytes:
    quote = packet[:_ICMP_QUOTE]
    body = struct.pack(">BBHI", _ICMP_DESTINATION_UNREACHABLE, _ICMP_HOST_UNREACHABLE, 0, 0) + quote
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0xC0, 20 + len(body), 0, 0, 64, PROTOCOL_ICMP, 0, destination, source)
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def _icmpv6(packet: bytes, source: bytes, destination: bytes, code: int) -> bytes:
    quote = packet[: _IPV6_MINIMUM_MTU - IPV6_HEADER_SIZE - 8]
    body = struct.pack(">BBHI", _ICMPV6_DESTINATION_UNREACHABLE, code, 0, 0) + quote
    total = pseudo_header_sum(destination + source, PROTOCOL_ICMPV6, len(body))
    body = body[:2] + checksum(body, total).to_bytes(2, "big") + body[4:]
    return struct.pack(">IHBB16s16s", 6 << 28, len(body), PROTOCOL_ICMPV6, 64, destination, source) + body
