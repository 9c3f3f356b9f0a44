"""Super-packets of all shapes, compared with a slow and obvious segmentation."""

from __future__ import annotations

from fuzz.packets import read_packet
from fuzz.reader import Reader
from wyrmhole.wire.ip import MAX_PACKET_SIZE
from wyrmhole.wire.split import MAX_SEGMENTS, split
from wyrmhole.wire.virtio import OffloadError

_LARGEST = MAX_PACKET_SIZE


def TestOneInput(data: bytes) -> None:
    """The segments equal those of the slow segmentation. Too many segments, or a size of 0, are refused."""
    reader = Reader(data)
    size = reader.integer(2)
    repeats = 1 + reader.byte()
    packet = read_packet(reader, payload=b"")
    seed = reader.rest()
    packet = type(packet)(**{**vars(packet), "payload": (seed * repeats)[: _LARGEST - packet.header]})
    segments = -(-len(packet.payload) // size) if size else 0
    try:
        packets = split(packet.frame(size))
    except OffloadError:
        assert size == 0 or segments > MAX_SEGMENTS
        return
    assert segments <= MAX_SEGMENTS
    if segments <= 64:
        assert packets == [segment.emit() for segment in packet.segments(size)]
    else:
        assert len(packets) == segments
