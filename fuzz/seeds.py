"""The inputs from which fuzzing starts: real traffic of the world in memory, and valid inputs for each target."""

from __future__ import annotations

import struct

from tests.support.packets import UDP, Packet, pattern
from tests.support.pcap import FileHeader, Record
from tests.support.world import World
from wyrmhole.protocol.constants import SECOND


def traffic() -> list[bytes]:
    """Return one message of each kind: initiation, response, cookie reply and transport data."""
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
    """Return TUN frames with plain packets and with super-packets."""
    plain = [bytes(10) + packet for packet in packets()]
    trains = [Packet(pattern(300), version=version, protocol=protocol) for version in (4, 6) for protocol in (6, UDP)]
    # The last one once failed: its segment size exceeds every length field.
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


CONFIG = """# of the office
[Interface]
PrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=  # secret
Address = 10.0.0.1/24, fd00::1/64
ListenPort = 51820
DNS = 10.0.0.53, internal
Table = off
PostUp = echo %i

# friendly_name = laptop
[Peer]
PublicKey = ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=
PresharedKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
Endpoint = [2001:db8::1]:51820
AllowedIPs = 10.0.0.2/32, fd00::2/128
PersistentKeepalive = 25
"""


def socks() -> list[bytes]:
    """Return a request by name, one with a password, and a UDP packet, each after two bytes that the target reads."""
    return [
        b"\xff\0\5\1\0\5\1\0\3\7db.test\x15\x38SELECT",
        b"\2\1\5\1\2\1\4user\10password\5\3\0\1\0\0\0\0\0\0",
        b"\0\0\0\0\0\4" + bytes(15) + b"\1\0\x35question",
    ]


def http_requests() -> list[bytes]:
    return [
        b"\xffCONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n",
        b"\7GET http://user@web.test:80/a?b HTTP/1.1\r\nHost: web.test\r\nConnection: close, x\r\nX: 1\r\n"
        b"Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==\r\nTE: trailers\r\n\r\n",
        b"\xffPOST http://[fd00::1]/ HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    ]


def answers() -> list[bytes]:
    """Return a kind byte, then flags and counts of a header, then records that refer to the question at offset 12."""
    a = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\0\0\1"
    aaaa = b"\xc0\x0c\0\x1c\0\1\0\0\0\x3c\0\x10\xfd" + bytes(14) + b"\1"
    alias = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\4\1b\xc0\x10" + b"\1b\xc0\x10" + a[2:]
    soa = b"\xc0\x10\0\6\0\1\0\0\0\x3c\0\x18\xc0\x10\xc0\x10" + bytes(19) + b"\5"
    return [
        b"\0\x81\x80\0\1\0\1\0\0\0\0" + a,
        b"\1\x81\x80\0\1\0\1\0\0\0\0" + aaaa,
        b"\0\x81\x80\0\1\0\2\0\0\0\0" + alias,
        b"\0\x81\x80\0\1\0\0\0\1\0\0" + soa,
        b"\0\x81\x83\0\1\0\0\0\1\0\0" + soa,
    ]


def status() -> bytes:
    key = "aa" * 32
    lines = [
        f"private_key={key}", "listen_port=51820", "fwmark=31", f"public_key={key}", f"preshared_key={key}",
        "protocol_version=1", "endpoint=[fe80::1%1]:51820", "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=5", "tx_bytes=1", "rx_bytes=2", "persistent_keepalive_interval=25",
        "allowed_ip=10.0.0.0/8", f"public_key={'bb' * 32}", "allowed_ip=fd00::/64",
    ]  # fmt: skip
    return "\n".join(lines).encode()


def words() -> list[bytes]:
    key = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
    first = f"listen-port 51820 fwmark 0x1f peer {key} endpoint db.test:1 persistent-keepalive off allowed-ips"
    return [
        "\n".join([*first.split(), "10.0.0.0/8, fd00::/64", "peer", key, "remove"]).encode(),
        "\n".join(["peer", key, "allowed-ips", "+10.0.0.1/32,-10.0.0.2"]).encode(),
        b"[::1]:53/udp\n:80\ndb.internal:5432\n[fe80::1%eth0]:51820\ninfinity\n15",
    ]


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
        # The second one once made a tunnel deaf: down, a packet, up again.
        "state_machine": [bytes.fromhex("000803010008020500010a03010501"), bytes.fromhex("c50000")],
        "wg_quick": [CONFIG.encode(), CONFIG.replace("\n", "\r\n").encode()],
        "socks": socks(),
        "http_proxy": http_requests(),
        "dns": answers(),
        "uapi_status": [status()],
        "words": words(),
        "gro_train": [bytes.fromhex("400006020212223242")],
    }
    return made.get(target, [bytes(range(64)), bytes(64)])
