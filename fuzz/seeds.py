"""Where fuzzing starts: real traffic of the memory world, and one plain input of each target's own form."""

from __future__ import annotations

import struct

from tests.protocol.world import World
from tests.wire.packets import UDP, Packet, pattern
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.pcap import FileHeader, Record


def traffic() -> list[bytes]:
    """A handshake, data, a keepalive, and under load a cookie reply."""
    world = World(seed=5)
    a, b = world.pair()
    b.plane.queue_depth = 1 << 20
    a.send(b, b"hello")
    world.run(SECOND)
    b.plane.queue_depth = 0
    world.run(12 * SECOND)
    first: dict[int, bytes] = {}
    for flight in world.wire:
        first.setdefault(flight.kind, flight.data)
    return list(first.values())


def packets() -> list[bytes]:
    shapes = (
        Packet(b"hello"),
        Packet(b"hello", version=6),
        Packet(b"hello", protocol=UDP),
        Packet(b"hello", ip_options=bytes([1] * 8)),
    )
    return [packet.emit() for packet in shapes]


def frames() -> list[bytes]:
    """Frames of a TUN: one packet, and super-packets."""
    plain = [bytes(10) + packet for packet in packets()]
    trains = [Packet(pattern(300), version=version, protocol=protocol) for version in (4, 6) for protocol in (6, UDP)]
    # The last one was found: a segment size that fits no length field.
    return [*plain, *(packet.frame(100) for packet in trains), Packet(b"x", protocol=UDP).frame(65_535)]


def conversation() -> bytes:
    key = "aa" * 32
    lines = [
        "set=1", f"private_key={key}", "listen_port=51820", "fwmark=0x1f", "replace_peers=true", f"public_key={key}",
        f"preshared_key={key}", "endpoint=[fe80::1%lo]:51820", "persistent_keepalive_interval=25",
        "replace_allowed_ips=true", "allowed_ip=10.0.0.0/8", "allowed_ip=-fd00::/64", f"public_key={'bb' * 32}",
        "update_only=true", "remove=true", "endpoint=192.0.2.1:1", "protocol_version=1", "", "get=1", "", "",
    ]  # fmt: skip
    return "\n".join(lines).encode()


def capture() -> list[bytes]:
    records = [Record.of(at * SECOND + 5000, packet) for at, packet in enumerate(packets())]
    headers = (FileHeader(), FileHeader(byte_order=">"), FileHeader(nanoseconds=1000))
    return [header.emit() + b"".join(record.emit(header) for record in records) for header in headers]


def route_messages() -> bytes:
    attribute = struct.pack("=HH4s", 8, 4, b"wg0\0") + struct.pack("=HHI", 8, 20, 1420)
    body = struct.pack("=BxHiII", 0, 1, 7, 0x41, 0) + attribute
    return struct.pack("=IHHII", 16 + len(body), 16, 0, 1, 0) + body


def of(target: str) -> list[bytes]:
    made = {
        "datagram": traffic(),
        "virtio": frames(),
        "inner_packet": [b"\0" + packet for packet in packets()],
        "uapi": [b"\xff" + conversation(), b"\x03" + conversation()],
        "pcap": capture(),
        "netlink": [route_messages() * 2],
        "endpoint_prefix": [
            b"192.0.2.1:51820",
            b"[fe80::1%3]:51820",
            b"10.0.0.0/8",
            b"fd00::/64",
            b"::ffff:1.2.3.4/128",
        ],
        "initiation": [bytes(2), bytes.fromhex("000108ff"), bytes.fromhex("0210"), bytes.fromhex("01000000")],
        "response": [bytes(2), bytes.fromhex("000108ff"), bytes.fromhex("0410"), bytes.fromhex("03000000")],
        "cookie_reply": [bytes(2), bytes.fromhex("000108ff"), bytes.fromhex("0410"), bytes.fromhex("03000000")],
        # The second one is what left a tunnel deaf: down, a packet, and up again.
        "state_machine": [bytes.fromhex("000803010008020500010a03010501"), bytes.fromhex("c50000")],
        "gro_train": [bytes.fromhex("400006020212223242")],
    }
    return made.get(target, [bytes(range(64)), bytes(64)])
