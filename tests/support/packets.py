"""IP packets built in a slow and obvious way, to compare with the fast code."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioHeader

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP, UDP, ICMP = 6, 17, 1
EXPERIMENTAL = 253
"""A protocol number reserved for experiments (RFC 3692)."""
TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")


def word_sum(data: bytes) -> int:
    """Return the checksum of RFC 1071, computed word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def field(data: bytes) -> int:
    return ~word_sum(data) & 0xFFFF


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet. `emit` returns its bytes with correct checksums."""

    payload: bytes = b""
    protocol: int = TCP
    version: int = 4
    source: int = 1
    destination: int = 2
    ports: tuple[int, int] = (443, 50000)
    sequence: int = 1000
    acknowledgment: int = 77
    flags: int = ACK
    window: int = 512
    options: bytes = TIMESTAMPS
    identification: int = 7
    fragment: int = 0x4000
    tos: int = 0
    ttl: int = 64
    ip_options: bytes = b""

    @property
    def start(self) -> int:
        return 40 if self.version == 6 else 20 + len(self.ip_options)

    @property
    def header(self) -> int:
        return self.start + (20 + len(self.options) if self.protocol == TCP else 8)

    @property
    def addresses(self) -> bytes:
        size = 4 if self.version == 4 else 16
        return self.source.to_bytes(size, "big") + self.destination.to_bytes(size, "big")

    def transport(self, checksum: int) -> bytes:
        if self.protocol == TCP:
            offset = (5 + len(self.options) // 4) << 4
            words = (*self.ports, self.sequence, self.acknowledgment, offset, self.flags, self.window, checksum, 0)
            return struct.pack(">HHIIBBHHH", *words) + self.options + self.payload
        return struct.pack(">HHHH", *self.ports, 8 + len(self.payload), checksum) + self.payload

    def pseudo_header(self) -> bytes:
        return self.addresses + struct.pack(">II", len(self.transport(0)), self.protocol)

    def ip_header(self, length: int) -> bytes:
        if self.version == 6:
            return struct.pack(">IHBB", 6 << 28 | self.tos << 20, length, self.protocol, self.ttl) + self.addresses
        first = 0x40 | (5 + len(self.ip_options) // 4)
        words = (first, self.tos, self.start + length, self.identification, self.fragment, self.ttl, self.protocol)
        start = struct.pack(">BBHHHBB", *words)
        checksum = field(start + self.addresses + self.ip_options)
        return start + checksum.to_bytes(2, "big") + self.addresses + self.ip_options

    def emit(self) -> bytes:
        checksum = field(self.pseudo_header() + self.transport(0))
        if self.protocol == UDP:
            checksum = checksum or 0xFFFF
        transport = self.transport(checksum)
        return self.ip_header(len(transport)) + transport

    def emit_partial(self) -> bytes:
        """Return the bytes with the pseudo-header's sum as the checksum, like the kernel for an offloading device."""
        transport = self.transport(word_sum(self.pseudo_header()))
        return self.ip_header(len(transport)) + transport

    @property
    def checksum_offset(self) -> int:
        return 16 if self.protocol == TCP else 6

    def frame(self, gso_size: int) -> bytes:
        """Return a super-packet as the kernel passes it to a TUN."""
        kind = GSO_UDP_L4 if self.protocol == UDP else GSO_TCPV4 if self.version == 4 else GSO_TCPV6
        if self.protocol == TCP and self.flags & CWR:
            kind |= GSO_ECN
        header = VirtioHeader(F_NEEDS_CSUM, kind, self.header, gso_size, self.start, self.checksum_offset)
        return header.emit() + self.emit_partial()

    def segments(self, gso_size: int) -> list[Packet]:
        """Split it like the kernel does."""
        chunks = [self.payload[at : at + gso_size] for at in range(0, max(len(self.payload), 1), gso_size)]
        last = len(chunks) - 1
        return [
            replace(
                self,
                payload=chunk,
                sequence=(self.sequence + index * gso_size) % 2**32,
                identification=(self.identification + index) % 2**16,
                flags=self.flags & ~(0 if index == last else FIN | PSH) & ~(CWR if index else 0),
            )
            for index, chunk in enumerate(chunks)
        ]


def train(count: int, size: int = 100, first: Packet | None = None) -> list[Packet]:
    """Return consecutive packets of one flow, each with `size` bytes of payload."""
    first = first or Packet()
    return replace(first, payload=pattern(count * size)).segments(size)


def pattern(size: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(size))


def addresses(version: int) -> st.SearchStrategy[int]:
    return st.integers(1, 2 ** (32 if version == 4 else 128) - 1)


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[Packet, int]:
    """Draw a TCP or UDP super-packet and its segment size."""
    version = draw(st.sampled_from([4, 6]))
    size = draw(st.integers(1, 300))
    count = draw(st.integers(1, 12))
    tail = draw(st.integers(1, size))
    seed = draw(st.binary(min_size=1, max_size=16))
    payload = (seed * (count * size))[: (count - 1) * size + tail]
    packet = Packet(
        payload=payload,
        version=version,
        protocol=draw(st.sampled_from([TCP, UDP])),
        source=draw(addresses(version)),
        destination=draw(addresses(version)),
        ports=draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535))),
        sequence=draw(st.integers(0, 2**32 - 1)),
        acknowledgment=draw(st.integers(0, 2**32 - 1)),
        flags=draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | PSH | CWR | ECE])),
        window=draw(st.integers(0, 65535)),
        options=draw(st.sampled_from([b"", TIMESTAMPS, bytes([1]) * 40])),
        identification=draw(st.integers(0, 65535)),
        fragment=draw(st.sampled_from([0, 0x4000])),
        tos=draw(st.integers(0, 255)),
        ttl=draw(st.integers(1, 255)),
        ip_options=draw(st.sampled_from([b"", bytes([1]) * 8])) if version == 4 else b"",
    )
    return packet, size


def address_bytes(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def ipv4(
    source: str,
    destination: str,
    payload: bytes = b"payload",
    *,
    protocol: int = EXPERIMENTAL,
    tos: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    words = (0x45 + len(options) // 4, tos, 20 + len(options) + len(payload), 7, fragment, 64, protocol)
    start = struct.pack(">BBHHHBB", *words)
    end = address_bytes(source) + address_bytes(destination) + options
    return start + field(start + end).to_bytes(2, "big") + end + payload


def ipv6(
    source: str, destination: str, payload: bytes = b"payload", *, protocol: int = EXPERIMENTAL, tos: int = 0
) -> bytes:
    start = struct.pack(">IHBB", 6 << 28 | tos << 20, len(payload), protocol, 64)
    return start + address_bytes(source) + address_bytes(destination) + payload


def udp_datagram(ports: tuple[int, int], payload: bytes = b"x") -> bytes:
    """Return a UDP header without a checksum, and the payload."""
    return struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


def tcp_segment(ports: tuple[int, int], payload: bytes = b"", *, sequence: int = 0, flags: int = ACK) -> bytes:
    """Return a TCP header without a checksum, and the payload."""
    return struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFF_FFFF, 0, 5 << 4, flags, 1000, 0, 0) + payload


def udp(source: str, destination: str, ports: tuple[int, int], payload: bytes = b"x") -> bytes:
    """Return an IPv4 packet with a UDP datagram."""
    return ipv4(source, destination, udp_datagram(ports, payload), protocol=UDP)


def uso(packet: bytes, payload: int) -> bytes:
    """Return a frame that requests to split a UDP packet into segments with this number of payload bytes."""
    return VirtioHeader(F_NEEDS_CSUM, GSO_UDP_L4, 28, payload, 20, 6).emit() + packet
