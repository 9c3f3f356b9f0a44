"""Microseconds per packet of the portable engine's two pure steps, without sockets and TUN.

usage: python bench/micro_engine.py [ROUNDS]
"""

from __future__ import annotations

import struct
import sys
import time

from wyrmhole.datapath.inbound import Inbound
from wyrmhole.datapath.outbound import Outbound
from wyrmhole.datapath.tables import Tables
from wyrmhole.protocol.constants import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES
from wyrmhole.protocol.data_plane import NEVER, KeypairParams
from wyrmhole.wire.checksum import checksum, pseudo_header_sum
from wyrmhole.wire.coalesce import Coalescer, Frame
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.prefix import Prefix

MTU = DEFAULT_MTU
MSS = MTU - 52


def super_packet(segments: int) -> bytes:
    """Return a TSO frame like the kernel's, of one TCP flow with timestamps."""
    total = 52 + MSS * segments
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    ip = struct.pack(">BBHHHBBH", 0x45, 0, total, 1, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    tcp = struct.pack(">HHIIBBHHH", 5000, 5201, 1, 1, 8 << 4, 0x10, 500, pseudo_header_sum(addresses, 6, total - 20), 0)
    options = bytes.fromhex("0101080a0000000100000002")
    virtio = struct.pack("=BBHHHH", 1, 1, 52, MSS, 20, 16)
    return virtio + ip + tcp + options + bytes(range(256)) * (MSS * segments // 256 + 1)


def ping() -> bytes:
    """Return a frame with a ping of 84 bytes."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 84, 1, 0x4000, 64, 1, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
    return bytes(10) + ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:] + bytes(64)


def datagram() -> bytes:
    """Return a frame with 1300 bytes of UDP and a partial checksum."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 1328, 1, 0x4000, 64, 17, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
    udp = struct.pack(">HHHH", 5000, 5201, 1308, pseudo_header_sum(ip[12:20], 17, 1308))
    virtio = struct.pack("=BBHHHH", 1, 0, 0, 0, 20, 6)
    return virtio + ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:] + udp + bytes(1300)


def keypair(local: int, remote: int, *, is_initiator: bool) -> KeypairParams:
    keys = (b"a" * 32, b"b" * 32) if is_initiator else (b"b" * 32, b"a" * 32)
    return KeypairParams(
        local, remote, *keys, is_initiator, 0, NEVER, NEVER, NEVER, REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES
    )


def tables(local: int, remote: int, *, is_initiator: bool, allowed: str) -> Tables:
    made = Tables()
    made.set_mac1_key(bytes(32))
    made.add_peer(1)
    made.set_endpoint(1, Endpoint("192.0.2.1", 51820))
    made.insert_allowed_ip(1, Prefix.parse(allowed))
    made.install(made.peers[1], keypair(local, remote, is_initiator=is_initiator))
    return made


def main(rounds: int) -> None:
    sent: list[tuple[bytes, int]] = []
    frames: list[Frame] = []
    out_tables = tables(1, 2, is_initiator=True, allowed="10.0.0.2/32")
    in_tables = tables(2, 1, is_initiator=False, allowed="10.0.0.1/32")
    outbound = Outbound(out_tables, lambda peer, view, size, tos: sent.append((bytes(view), size)), lambda packet: None)
    inbound = Inbound(in_tables, frames.append, lambda peer: None, Coalescer(tso=True, uso=True))
    for label, frame, segments in (
        ("ping", ping(), 1),
        ("UDP 1300", datagram(), 1),
        ("TCP x 45", super_packet(45)[: 10 + 52 + MSS * 45], 45),
    ):
        times_out, times_in = [], []
        for _ in range(rounds):
            sent.clear()
            start = time.perf_counter()
            outbound.handle_frame(memoryview(frame), 1)
            outbound.flush()
            times_out.append(time.perf_counter() - start)
            received = [Received(memoryview(data), size, ("192.0.2.1", 51820), None) for data, size in sent]
            frames.clear()
            start = time.perf_counter()
            for each in received:
                inbound.handle(each, 1)
            times_in.append(time.perf_counter() - start)
            assert sum(len(frame.packets) for frame in frames) == segments, in_tables.drops
        for name, times in (("out", times_out), ("in", times_in)):
            median = sorted(times)[len(times) // 2]
            print(f"{label:8s} {name:3s}: {median * 1e6 / segments:6.2f} us per packet, {len(frames)} frames")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
