"""Inner packets of the simulated hosts: IP packets that carry a number, by which each can be tracked.

Host n owns 10.0.n.0/24 and fd00:0:0:n::/64. The IP protocol is 253 (for
experiments, RFC 3692), which is never coalesced.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE
from wyrmhole.wire.prefix import Prefix

PROTOCOL = 253
MIN_SIZE = IPV6_HEADER_SIZE + 8
_NUMBER = struct.Struct(">Q")


@dataclass(slots=True)
class PacketRecord:
    """One packet read from the TUN of host `sender`.

    `owner` is the public key that owned the destination at that time. `at` is the time of the last change
    (see Ledger.forget).
    """

    data: bytes
    sender: int
    owner: bytes | None
    at: int
    sealed: bool = False
    delivered: bool = False


def v4_prefix(number: int) -> Prefix:
    return Prefix(4, 10 << 24 | number << 8, 24)


def v6_prefix(number: int) -> Prefix:
    return Prefix(6, 0xFD << 120 | number << 64, 64)


def address(number: int, low: int, *, v6: bool) -> bytes:
    """Return the host's inner address number `low` (1 to 255)."""
    if v6:
        return (v6_prefix(number).network | low).to_bytes(16, "big")
    return (v4_prefix(number).network | low).to_bytes(4, "big")


def build(source: bytes, destination: bytes, number: int, size: int) -> bytes:
    """Build an IP packet of `size` bytes (at least MIN_SIZE) whose payload repeats the number."""
    v6 = len(source) == 16
    payload = (_NUMBER.pack(number) * (size // 8 + 1))[: max(size - (IPV6_HEADER_SIZE if v6 else IPV4_HEADER_SIZE), 8)]
    if v6:
        return struct.pack(">IHBB", 6 << 28, len(payload), PROTOCOL, 64) + source + destination + payload
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, IPV4_HEADER_SIZE + len(payload), 0, 0, 64, PROTOCOL, 0, source, destination
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def number_of(packet: bytes) -> int | None:
    """Return the number of a packet that `build` made, or None for any other packet (such as an ICMP error)."""
    start = IPV6_HEADER_SIZE if packet[0] >> 4 == 6 else IPV4_HEADER_SIZE
    protocol = packet[6] if start == IPV6_HEADER_SIZE else packet[9]
    if protocol != PROTOCOL:
        return None
    found: int = _NUMBER.unpack_from(packet, start)[0]
    return found


def source_of(packet: bytes) -> bytes:
    return packet[8:24] if packet[0] >> 4 == 6 else packet[12:16]


def length_of(packet: bytes) -> int:
    """Return the packet's length according to its header."""
    if packet[0] >> 4 == 6:
        return IPV6_HEADER_SIZE + int.from_bytes(packet[4:6], "big")
    return int.from_bytes(packet[2:4], "big")


def longest_prefix(routes: dict[Prefix, bytes], destination: bytes) -> bytes | None:
    """Return the owner of an address by examining every prefix: slow, but obviously correct."""
    version = 6 if len(destination) == 16 else 4
    value = int.from_bytes(destination, "big")
    best: tuple[int, bytes | None] = (-1, None)
    for prefix, owner in routes.items():
        shift = prefix.bits - prefix.length
        if prefix.version == version and prefix.length > best[0] and value >> shift == prefix.network >> shift:
            best = (prefix.length, owner)
    return best[1]
