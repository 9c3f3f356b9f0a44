"""Trains of datagrams as UDP_GRO gives them: genuine, bent and invented messages, in segments of any size."""

from __future__ import annotations

from fuzz.reader import Reader
from tests.engine.test_engine import A_INNER, A_OUTER, B_INNER, connected, handshake_message, ipv4

_HANDSHAKE = handshake_message()
_MOST = 20


def read_datagram(reader: Reader, genuine: list[bytes]) -> bytes:
    kind = reader.byte()
    if kind & 3 == 0:
        return reader.block()
    datagram = bytearray(_HANDSHAKE if kind & 3 == 1 else genuine[(kind >> 4) % len(genuine)])
    if kind & 4:
        datagram[reader.integer(2) % len(datagram)] ^= 1 << reader.choose(8)
    if kind & 8:
        del datagram[reader.integer(2) % len(datagram) :]
    return bytes(datagram)


def TestOneInput(data: bytes) -> None:
    """B4: each datagram of a train is delivered, reported, a keepalive, or dropped by name; what is delivered was sent,
    and once."""
    reader = Reader(data)
    a, b = connected()
    sent = [ipv4(A_INNER, B_INNER, bytes([number]) * (number * 8)) for number in range(8)]
    a.tunnel(*sent)
    genuine = a.take()
    segment = reader.integer(2)
    train = b"".join(read_datagram(reader, genuine) for _ in range(min(_MOST, 1 + reader.choose(_MOST))))
    if not train:
        return
    count = -(-len(train) // segment) if 0 < segment < len(train) else 1
    b.network(train, A_OUTER, segment=segment)
    delivered = b.delivered
    assert len(set(delivered)) == len(delivered) and set(delivered) <= set(sent)
    reported = sum(type(report).__name__ == "HandshakeDatagram" for report in b.reports())
    assert len(delivered) + reported + sum(b.drops().values()) == count
