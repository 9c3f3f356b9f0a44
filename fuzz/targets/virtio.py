"""TUN frames with headers that may be inconsistent."""

from __future__ import annotations

from wyrmhole.wire.split import MAX_SEGMENTS, split
from wyrmhole.wire.virtio import F_NEEDS_CSUM, VIRTIO_HEADER_SIZE, OffloadError, VirtioHeader


def TestOneInput(data: bytes) -> None:
    """A header that parses emits the same bytes. `split` returns packets or raises OffloadError. It never returns more
    packets than its limit, loses no payload, and leaves a frame without offloads unchanged."""
    try:
        header = VirtioHeader.parse(data)
    except OffloadError:
        assert len(data) < VIRTIO_HEADER_SIZE
        return
    assert header.emit() == data[:VIRTIO_HEADER_SIZE]
    packet = data[VIRTIO_HEADER_SIZE:]
    try:
        packets = split(data)
    except OffloadError:
        return
    if not header.gso_type:
        assert len(packets) == 1 and len(packets[0]) == len(packet)
        assert packets[0] == packet or header.flags & F_NEEDS_CSUM
        return
    assert 1 <= len(packets) <= MAX_SEGMENTS
    headers = len(packets[0]) - min(header.gso_size, len(packets[0]))
    assert all(len(each) <= len(packet) for each in packets)
    assert sum(map(len, packets)) >= len(packet) > headers - 1
    assert all(each[0] == packet[0] for each in packets)
