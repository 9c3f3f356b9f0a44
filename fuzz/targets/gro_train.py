"""Trains of datagrams like those of UDP_GRO: genuine, altered and invented messages, in segments of any size."""

from __future__ import annotations

import gc
from itertools import count

from fuzz.reader import Reader
from tests.support.engines import KINDS, chosen
from tests.support.packets import ipv4
from tests.support.sides import A_INNER, A_OUTER, B_INNER, Side, connected, handshake_message
from wyrmhole.engine.select import has_native
from wyrmhole.protocol.drops import DropReason

_HANDSHAKE = handshake_message()
_MOST = 20
_COLLECT_EVERY = 20
"""Executions between two collections. Engines are reference cycles that hold descriptors, and native engines have too
few objects to trigger the collector early enough."""
_executions = count()
_SENT = [ipv4(A_INNER, B_INNER, bytes([number]) * (number * 8)) for number in range(8)]
_INSTALLED = [kind for kind in KINDS if kind == "portable" or has_native()]


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


def genuine_traffic() -> tuple[Side, list[bytes]]:
    """Return a receiver, and datagrams of its peer that were not delivered yet."""
    a, b = connected()
    a.tunnel(*_SENT)
    return b, a.take()


def outcome(kind: str, data: bytes) -> tuple[list[bytes], int, dict[DropReason, int]] | None:
    """Return what one engine delivered, reported and dropped for the train."""
    reader = Reader(data)
    with chosen(kind):
        b, genuine = genuine_traffic()
    segment = reader.integer(2)
    train = b"".join(read_datagram(reader, genuine) for _ in range(1 + reader.choose(_MOST)))
    if not train:
        return None
    datagrams = -(-len(train) // segment) if 0 < segment < len(train) else 1
    b.network(train, A_OUTER, segment=segment)
    delivered = b.delivered
    assert len(set(delivered)) == len(delivered) and set(delivered) <= set(_SENT)
    reported = sum(type(report).__name__ == "HandshakeDatagram" for report in b.reports())
    assert len(delivered) + reported + sum(b.drops().values()) == datagrams
    return delivered, reported, b.drops()


def TestOneInput(data: bytes) -> None:
    """Each datagram of a train is delivered, reported, or counted under a drop reason. Delivered packets were sent, and
    are delivered once. All installed engines have the same outcome."""
    if next(_executions) % _COLLECT_EVERY == 0:
        gc.collect()
    outcomes = [outcome(kind, data) for kind in _INSTALLED]
    assert all(each == outcomes[0] for each in outcomes)
