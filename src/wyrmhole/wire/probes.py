"""IP packets that probe whether a host is reachable, and the parsing of their answers.

Probes are ICMP echo requests (RFC 792, RFC 4443) and UDP packets, over IPv4 and IPv6 without options. Builders return
complete IP packets with valid checksums. `read_answer` accepts any bytes and returns None if they cannot be an answer.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from wyrmhole.wire import ip
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import checksum, pseudo_header_sum

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_ECHO = struct.Struct("!BBHHH")
_UDP = struct.Struct("!HHHH")
_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_ERRORS = {4: frozenset({3, 11}), 6: frozenset({1, 2, 3})}
"""ICMP types: destination unreachable and time exceeded; for IPv6 also packet too big."""
_PORT_UNREACHABLE = {(4, 3, 3), (6, 1, 4)}
_TOO_BIG = {(4, 3, 4), (6, 2, 0)}
_HOP_LIMIT = 64


@dataclass(frozen=True, slots=True)
class EchoReply:
    source: IpAddress
    identity: int
    """Identifier and sequence number, 16 bits each."""


@dataclass(frozen=True, slots=True)
class UdpReply:
    source: IpAddress
    source_port: int
    port: int
    """The local port."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class IcmpRefusal:
    """An ICMP error about a probe.

    `identity` is the identity of an echo request, or the source port of a UDP packet.
    """

    source: IpAddress
    identity: int
    is_port_unreachable: bool
    is_too_big: bool


Answer = EchoReply | UdpReply | IcmpRefusal


def header_size(version: int) -> int:
    return ip.IPV4_HEADER_SIZE if version == 4 else ip.IPV6_HEADER_SIZE


def echo_request(source: IpAddress, destination: IpAddress, identity: int, length: int) -> bytes:
    """Build an echo request of `length` bytes, at least the IP header and 8."""
    version = source.version
    padding = bytes(max(0, length - header_size(version) - _ECHO.size))
    body = _ECHO.pack(_ECHO_REQUEST[version], 0, 0, identity >> 16, identity & 0xFFFF) + padding
    protocol = ip.PROTOCOL_ICMP if version == 4 else ip.PROTOCOL_ICMPV6
    total = 0 if version == 4 else _pseudo_sum(source, destination, protocol, len(body))
    body = body[:2] + checksum(body, total).to_bytes(2, "big") + body[4:]
    return _header(source, destination, protocol, len(body)) + body


def udp_packet(source: IpAddress, source_port: int, destination: IpAddress, port: int, payload: bytes) -> bytes:
    length = ip.UDP_HEADER_SIZE + len(payload)
    body = _UDP.pack(source_port, port, length, 0) + payload
    total = _pseudo_sum(source, destination, ip.PROTOCOL_UDP, length)
    # A computed zero is sent as all ones, because zero means that there is no checksum (RFC 768).
    body = body[:6] + (checksum(body, total) or 0xFFFF).to_bytes(2, "big") + body[8:]
    return _header(source, destination, ip.PROTOCOL_UDP, length) + body


def _pseudo_sum(source: IpAddress, destination: IpAddress, protocol: int, length: int) -> int:
    return pseudo_header_sum(source.packed + destination.packed, protocol, length)


def _header(source: IpAddress, destination: IpAddress, protocol: int, length: int) -> bytes:
    addresses = source.packed + destination.packed
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, _HOP_LIMIT) + addresses
    # With DF set, a packet that is too big for the path is reported instead of fragmented.
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 0, 0x4000, _HOP_LIMIT, protocol)
    return start + checksum(start + addresses).to_bytes(2, "big") + addresses


def read_answer(packet: Buffer) -> Answer | None:
    """Parse a packet that has the form of an answer. The caller must compare it with its own probes."""
    found = _parts(packet)
    if found is None:
        return None
    source, protocol, body = found
    if protocol == ip.PROTOCOL_UDP and len(body) >= ip.UDP_HEADER_SIZE:
        source_port, port, length, _ = _UDP.unpack_from(body)
        return UdpReply(source, source_port, port, body[ip.UDP_HEADER_SIZE : length])
    if protocol in (ip.PROTOCOL_ICMP, ip.PROTOCOL_ICMPV6) and len(body) >= _ECHO.size:
        return _icmp_answer(source, body)
    return None


def _icmp_answer(source: IpAddress, body: bytes) -> Answer | None:
    kind, code, _, high, low = _ECHO.unpack_from(body)
    if kind == _ECHO_REPLY[source.version]:
        return EchoReply(source, high << 16 | low)
    if kind not in _ERRORS[source.version]:
        return None
    quoted = _parts(body[_ECHO.size :])
    if quoted is None or len(quoted[2]) < _ECHO.size:
        return None
    error = (source.version, kind, code)
    if quoted[1] == ip.PROTOCOL_UDP:
        identity = int(_UDP.unpack_from(quoted[2])[0])
    else:
        _, _, _, high, low = _ECHO.unpack_from(quoted[2])
        identity = high << 16 | low
    return IcmpRefusal(source, identity, error in _PORT_UNREACHABLE, error in _TOO_BIG)


def _parts(packet: Buffer) -> tuple[IpAddress, int, bytes] | None:
    """Return source, protocol and the bytes after the header. Probes and their answers have no extension headers."""
    data, version = bytes(packet), ip.version_of(packet)
    if version == 4 and len(data) >= ip.IPV4_HEADER_SIZE:
        return ipaddress.IPv4Address(data[12:16]), data[9], data[(data[0] & 15) * 4 :]
    if version == 6 and len(data) >= ip.IPV6_HEADER_SIZE:
        return ipaddress.IPv6Address(data[8:24]), data[6], data[ip.IPV6_HEADER_SIZE :]
    return None
