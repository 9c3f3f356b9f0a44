"""Trains: the buffers into which datagrams are sealed, each for one peer at a time.

A train is a GSO batch: datagrams of equal size, back to back in one buffer; the last one may be shorter. UDP
segmentation offload sends this layout with one call. The number of trains bounds the memory. A turn that sends to more
peers sends the first trains early.
"""

from __future__ import annotations

from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.wire.datagram import MAX_TRAIN_SEGMENTS
from wyrmhole.wire.ip import IPV4_HEADER_SIZE, MAX_PACKET_SIZE, UDP_HEADER_SIZE
from wyrmhole.wire.messages import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD

MAX_TRAIN_BYTES = MAX_PACKET_SIZE - IPV4_HEADER_SIZE - UDP_HEADER_SIZE
"""The largest UDP datagram over IPv4, which also limits a segmented send."""
WIRE_BYTES = MAX_PACKET_SIZE + 15 + TRANSPORT_OVERHEAD
"""A single datagram may be longer than a train; the socket refuses it if it cannot be sent."""
MAX_TRAINS = 8
"""Trains in addition to the current one; they take at most half a megabyte."""
MAX_LAYOUTS = 16
"""Datagram sizes whose layout a train caches; TCP uses two or three."""

Layout = list[tuple[int, memoryview]]
"""The layout of datagrams of one size: the offset of each, and a view for its ciphertext and tag."""


class Train:
    """Datagrams for one peer that are sent together. `size` is the size of all but the last."""

    __slots__ = ("_layouts", "closed", "count", "length", "peer", "size", "tos", "wire")

    def __init__(self) -> None:
        self.wire = memoryview(bytearray(WIRE_BYTES))
        self._layouts: dict[int, Layout] = {}
        self.begin(None, 0, 0)

    def begin(self, peer: EnginePeer | None, size: int, tos: int) -> None:
        self.peer = peer
        self.size = size
        self.tos = tos
        self.count = 0
        self.length = 0
        self.closed = False

    def takes(self, size: int, tos: int) -> bool:
        """Whether one more datagram of this size fits."""
        return (
            size <= self.size
            and not self.closed
            and tos == self.tos
            and self.count < MAX_TRAIN_SEGMENTS
            and self.length + size <= MAX_TRAIN_BYTES
        )

    def room(self, size: int, count: int) -> Layout:
        """Return room for up to `count` more datagrams of this size, at least one. `takes` was true for the first."""
        if count > 1 and size == self.size:
            return self._layout(size)[self.count : self.count + count]
        at = self.length
        return [(at, self.wire[at + TRANSPORT_HEADER_SIZE : at + size])]

    def add(self, size: int, count: int) -> None:
        """Add `count` datagrams that were written to the room. A datagram shorter than the others is the last."""
        self.count += count
        self.length += size * count
        self.closed = size < self.size

    def _layout(self, size: int) -> Layout:
        layout = self._layouts.get(size)
        if layout is None:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            count = max(1, min(MAX_TRAIN_SEGMENTS, MAX_TRAIN_BYTES // size))
            layout = [
                (at * size, self.wire[at * size + TRANSPORT_HEADER_SIZE : at * size + size]) for at in range(count)
            ]
            self._layouts[size] = layout
        return layout


class TrainPool:
    """Lends up to MAX_TRAINS trains, which are created when first needed and then kept."""

    def __init__(self) -> None:
        self._free: list[Train] = []
        self._made = 0

    def take(self) -> Train | None:
        """Return a train, or None if all are in use."""
        if self._free:
            return self._free.pop()
        if self._made == MAX_TRAINS:
            return None
        self._made += 1
        return Train()

    def give_back(self, train: Train) -> None:
        self._free.append(train)


def count_datagrams(data: bytes | memoryview, size: int) -> int:
    """Return the number of datagrams in a train, or 1 for a single datagram (`size` 0)."""
    return -(-len(data) // size) if size else 1
