"""Inner packets of an authenticated peer, which may hold any bytes."""

from __future__ import annotations

import ipaddress
from typing import Final

from fuzz.reader import Reader
from tests.support.sides import A_OUTER, connected
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire import ip
from wyrmhole.wire.prefix import Prefix

_A, _B = connected()
_OWNED: Final = ("10.0.0.1/32", "fd00::/64")
_B.engine.insert_allowed_ip(1, Prefix.parse(_OWNED[1]))
_NETWORKS = [ipaddress.ip_network(text) for text in _OWNED]


def expected_length(packet: bytes) -> int:
    """Return the length by RFC 791 and RFC 8200, or 0 if this is not an IP packet or claims more bytes than it has."""
    version = packet[0] >> 4
    if version == 4 and len(packet) >= 20:
        header, total = (packet[0] % 16) * 4, int.from_bytes(packet[2:4], "big")
        return total if 20 <= header <= total <= len(packet) else 0
    if version == 6 and len(packet) >= 40:
        payload = int.from_bytes(packet[4:6], "big")
        is_jumbo = payload == 0 and packet[6] == 0
        return 0 if is_jumbo or 40 + payload > len(packet) else 40 + payload
    return 0


def expected_source(packet: bytes) -> bool:
    raw = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
    return any(ipaddress.ip_address(raw) in network for network in _NETWORKS)


def TestOneInput(data: bytes) -> None:
    """A packet with valid lengths and a source that belongs to the peer is delivered without its padding; any other is
    counted under one drop reason. The functions of `wire.ip` never raise (M47, M45)."""
    reader = Reader(data)
    outer_tos = reader.byte()
    packet = reader.rest()
    check_fields(packet, outer_tos)
    (_, keypair) = _B.engine._tables.indices[20]
    (_, sender) = _A.engine._tables.indices[10]
    counter = sender.send_counter
    sender.send_counter += 1
    sealed = bytearray(len(packet) + 16)
    sender.send.seal(bytes(4) + counter.to_bytes(8, "little"), packet, None, sealed)
    before = sum(_B.drops().values())
    header = b"\4\0\0\0" + (20).to_bytes(4, "little") + counter.to_bytes(8, "little")
    _B.network(header + bytes(sealed), A_OUTER)
    delivered, dropped = _B.delivered, sum(_B.drops().values()) - before
    length = expected_length(packet) if packet else 0
    if length and expected_source(packet):
        assert delivered == [packet[:length]] and not dropped
    else:
        assert not delivered and dropped == bool(packet)
    assert not _B.drops().get(DropReason.BAD_TAG) and keypair.window.greatest == counter
    _B.reports()


def check_fields(packet: bytes, outer_tos: int) -> None:
    ip.udp_ports(packet)
    ip.text_of(ip.source_of(packet))
    ecn = ip.decapsulate_ecn(outer_tos & 3, ip.ecn_of(packet))
    if ip.length_of(packet):
        marked = ip.with_ecn(packet, ecn)
        assert len(marked) == len(packet) and ip.ecn_of(marked) == ecn
    for no_route in (False, True):
        error = ip.unreachable(packet, no_route=no_route)
        if error is not None:
            assert ip.length_of(error) == len(error) <= 1280
            assert ip.destination_of(error) == ip.source_of(packet)
            assert ip.unreachable(error, no_route=no_route) is None, "errors are not answered"
