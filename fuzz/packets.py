"""Packets made from the fuzzer's bytes by the slow builder of the tests."""

from __future__ import annotations

from fuzz.reader import Reader
from tests.support.packets import ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, TIMESTAMPS, UDP, URG, Packet

FLAGS = (
    ACK,
    ACK | PSH,
    ACK | FIN,
    ACK | CWR,
    ACK | PSH | CWR | ECE,
    SYN,
    RST | ACK,
    ACK | URG,
    ACK | FIN | PSH,
    ACK | ECE,
)
_OPTIONS = (b"", TIMESTAMPS, bytes([1]) * 40, bytes([1]) * 4)


def read_packet(reader: Reader, payload: bytes | None = None) -> Packet:
    shape = reader.byte()
    version = 6 if shape & 1 else 4
    size = 16 if version == 6 else 4
    return Packet(
        payload=reader.block() if payload is None else payload,
        version=version,
        protocol=UDP if shape & 2 else TCP,
        source=reader.integer(size),
        destination=reader.integer(size),
        ports=(reader.integer(2), reader.integer(2)),
        sequence=reader.integer(4),
        acknowledgment=reader.integer(1),
        flags=FLAGS[reader.choose(len(FLAGS))],
        window=reader.integer(2),
        options=_OPTIONS[shape >> 2 & 3],
        identification=reader.integer(2),
        fragment=0x4000 if shape & 16 else 0,
        tos=reader.byte(),
        ttl=reader.byte(),
        ip_options=bytes([1]) * 8 if shape & 32 and version == 4 else b"",
    )
