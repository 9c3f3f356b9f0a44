"""Microseconds per packet of the hot functions of the package `wire`: `python bench/micro_wire.py`.

Each figure is the best of several repetitions in one thread.
"""

from __future__ import annotations

import struct
import timeit
from collections.abc import Callable

from wyrmhole.wire.checksum import ones_sum, pseudo_header_sum, residue
from wyrmhole.wire.coalesce import Coalescer
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.split import split
from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, PLAIN_HEADER, VirtioHeader

SEGMENTS = 45
PACKET = DEFAULT_MTU
REPETITIONS = 7


def best(function: Callable[[], object], per_call: int = 1, calls: int = 200) -> float:
    """Return the microseconds for each of the `per_call` items that one call processes."""
    return min(timeit.repeat(function, number=calls, repeat=REPETITIONS)) / calls / per_call * 1e6


def super_packet(version: int, protocol: int, segments: int = SEGMENTS, packet: int = PACKET) -> bytes:
    """Return a TUN frame whose segments become packets of `packet` bytes."""
    start, transport = (20 if version == 4 else 40), (32 if protocol == 6 else 8)
    size = packet - start - transport
    length = transport + segments * size
    addresses = bytes(range(1, 9 if version == 4 else 33))
    partial = pseudo_header_sum(addresses, protocol, length)
    if version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, start + length, 1, 0x4000, 64, protocol, 0)
    else:
        head = struct.pack(">IHBB", 6 << 28, length & 0xFFFF, protocol, 64)
    if protocol == 6:
        kind, offset = (GSO_TCPV4 if version == 4 else GSO_TCPV6), 16
        head += addresses + struct.pack(">HHIIBBHHH12x", 443, 50000, 1, 1, 0x80, 0x10, 512, partial, 0)
    else:
        kind, offset = GSO_UDP_L4, 6
        head += addresses + struct.pack(">HHHH", 443, 50000, length & 0xFFFF, partial)
    payload = bytes(at * 7 % 251 for at in range(segments * size))
    return VirtioHeader(F_NEEDS_CSUM, kind, start + transport, size, start, offset).emit() + head + payload


def report(name: str, microseconds: float) -> None:
    print(f"{name:52} {microseconds:7.2f} us")


def bench_checksum() -> None:
    for size in (20, 64, 576, 1380, 65535):
        data = bytes(at * 7 % 251 for at in range(size))
        calls = 20 if size > 10_000 else 5000
        report(f"residue of {size} bytes", best(lambda data=data: residue(data), calls=calls))  # type: ignore[misc]
    report("ones_sum of 1380 bytes", best(lambda: ones_sum(data[:1380]), calls=5000))


def bench_offload(name: str, version: int, protocol: int, segments: int, packet: int) -> None:
    frame = memoryview(super_packet(version, protocol, segments, packet))
    report(f"split {name}, per segment", best(lambda: split(frame), segments))
    packets = [memoryview(bytearray(part)) for part in split(frame)]
    coalescer = Coalescer(tso=True, uso=True)

    def coalesce() -> int:
        for part in packets:
            coalescer.add(part)
        return len(coalescer.take())

    assert coalesce() == 1
    report(f"coalesce {name}, per packet", best(coalesce, segments))


def bench_singles() -> None:
    packet = memoryview(bytearray(split(super_packet(4, 6, 1, 84))[0]))
    frame = memoryview(PLAIN_HEADER + bytes(packet))
    coalescer = Coalescer(tso=True, uso=True)

    def alone() -> None:
        coalescer.add(packet)
        coalescer.take()

    def many_flows() -> None:
        for other in others:
            coalescer.add(other)
        coalescer.take()

    others = [memoryview(bytes(packet[:20]) + struct.pack(">H", port) + bytes(packet[22:])) for port in range(32)]
    report("split one plain packet of 84 bytes", best(lambda: split(frame), calls=5000))
    partial = memoryview(VirtioHeader(F_NEEDS_CSUM, csum_start=20, csum_offset=16).emit() + bytes(packet))
    report("split one packet of 84 bytes, checksum partial", best(lambda: split(partial), calls=5000))
    report("coalesce one packet alone", best(alone, calls=5000))
    report("coalesce 32 packets of 32 flows, per packet", best(many_flows, len(others)))


def main() -> None:
    bench_checksum()
    bench_offload("TCP over IPv4", 4, 6, SEGMENTS, PACKET)
    bench_offload("TCP over IPv6", 6, 6, SEGMENTS, PACKET)
    bench_offload("UDP over IPv4", 4, 17, SEGMENTS, PACKET)
    bench_offload("UDP over IPv4, 92-byte packets", 4, 17, 64, 92)
    bench_singles()


if __name__ == "__main__":
    main()
