"""Packets of a few flows, merged into frames and split again."""

from __future__ import annotations

from dataclasses import replace

from fuzz.packets import FLAGS, read_packet
from fuzz.reader import Reader
from tests.support.packets import TCP, UDP, Packet
from wyrmhole.wire.checksum import residue
from wyrmhole.wire.coalesce import Coalescer, Frame
from wyrmhole.wire.split import split

_MOST = 24


def read_train(reader: Reader) -> list[bytes]:
    """Read packets that are mostly consecutive in their flow, with some changes that forbid merging."""
    flows = [read_packet(reader, payload=b"") for _ in range(1 + reader.choose(3))]
    size = 1 + reader.choose(64)
    packets: list[bytes] = []
    while not reader.is_done and len(packets) < _MOST:
        packets.append(_next(reader, flows, size))
    return packets


def _next(reader: Reader, flows: list[Packet], size: int) -> bytes:
    choice = reader.byte()
    number = choice % len(flows)
    change = choice >> 2 & 15
    packet = replace(flows[number], payload=bytes([reader.byte()]) * (reader.choose(80) if change == 1 else size))
    if change == 2:
        packet = replace(packet, flags=FLAGS[reader.choose(len(FLAGS))])
    elif change == 3:
        packet = replace(packet, sequence=reader.integer(4))
    elif change == 4:
        packet = replace(packet, ttl=reader.byte(), tos=reader.byte())
    elif change == 5:
        packet = replace(packet, identification=reader.integer(2))
    flows[number] = replace(
        packet,
        payload=b"",
        flags=flows[number].flags,
        sequence=(packet.sequence + len(packet.payload)) % 2**32,
        identification=(packet.identification + 1) % 2**16,
    )
    emitted = bytearray(packet.emit())
    if change == 6:
        emitted[reader.integer(2) % len(emitted)] ^= 1 << reader.choose(8)
    return bytes(emitted)


def flow_of(packet: bytes) -> bytes:
    """Return addresses, protocol and ports, within which order is kept; other packets are each a flow."""
    if packet[0] >> 4 not in (4, 6):
        return packet
    start = 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
    addresses = packet[8:40] if packet[0] >> 4 == 6 else packet[12:20]
    protocol = packet[6] if packet[0] >> 4 == 6 else packet[9]
    return bytes([protocol]) + addresses + packet[start : start + 4] if protocol in (TCP, UDP) else packet


def without_identification(packet: bytes) -> bytes:
    """Clear the identification, which has no meaning if DF is set and which splitting increments anyway (RFC 6864)."""
    if packet[0] >> 4 != 4 or not packet[6] & 0x40:
        return packet
    assert not residue(packet[:20]) or packet[0] & 15 != 5, "the header's checksum is wrong"
    return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]


def check_frame(frame: Frame) -> None:
    members = [bytes(packet) for packet in frame.packets]
    segments = split(b"".join(frame.parts))
    if len(members) == 1:
        assert segments == members
    else:
        assert [*map(without_identification, segments)] == [*map(without_identification, members)]


def TestOneInput(data: bytes) -> None:
    """Each frame, split again, yields its original packets, byte by byte. No packet is lost or duplicated, and packets
    of one flow keep their order."""
    reader = Reader(data)
    switches = reader.byte()
    coalescer = Coalescer(tso=not switches & 1, uso=not switches & 2)
    packets = read_train(reader)
    for packet in packets:
        coalescer.add(packet)
    given: list[bytes] = []
    for frame in coalescer.take():
        check_frame(frame)
        given += [bytes(packet) for packet in frame.packets]
    assert sorted(given) == sorted(packets)
    for flow in {flow_of(packet) for packet in packets}:
        assert [each for each in given if flow_of(each) == flow] == [each for each in packets if flow_of(each) == flow]
