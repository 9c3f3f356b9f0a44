"""The memory that datagrams are sealed into: a few trains, each for one peer at a time.

A train is equal datagrams back to back in one buffer, the last one maybe shorter, which is the shape that UDP
segmentation offload sends. The number of trains bounds the memory; a turn that sends to more peers than that sends
the first ones early.
"""

from __future__ import annotations

from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.wire.datagram import MAX_TRAIN_SEGMENTS
from wyrmhole.wire.ip import IPV4_HEADER_SIZE, MAX_PACKET_SIZE, UDP_HEADER_SIZE
from wyrmhole.wire.messages import TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD

MAX_TRAIN_BYTES = MAX_PACKET_SIZE - IPV4_HEADER_SIZE - UDP_HEADER_SIZE
"""What one UDP datagram over IPv4 can hold, which bounds a segmented send too."""
WIRE_BYTES = MAX_PACKET_SIZE + 15 + TRANSPORT_OVERHEAD
"""A single datagram may be longer than a train: whether it can be sent is the socket's to say."""
MAX_TRAINS = 8
"""Besides the one in use: what bounds the memory, at half a megabyte."""
MAX_LAYOUTS = 16
"""Sizes whose layout a train keeps; TCP uses two or three."""

Layout = list[tuple[int, memoryview]]
"""Where the datagrams of one size lie: offset of each, and its place for ciphertext and tag."""


class Train:
    """Datagrams for one peer that leave together. `size` is that of all but the last."""

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
        """Whether one more datagram of this size may join."""
        return (
            size <= self.size
            and not self.closed
            and tos == self.tos
            and self.count < MAX_TRAIN_SEGMENTS
            and self.length + size <= MAX_TRAIN_BYTES
        )

    def room(self, size: int, count: int) -> Layout:
        """Places for up to `count` more datagrams of this size, at least one. `takes` was true for the first."""
        if count > 1 and size == self.size:
            return self._layout(size)[self.count : self.count + count]
        at = self.length
        return [(at, self.wire[at + TRANSPORT_HEADER_SIZE : at + size])]

    def add(self, size: int, count: int) -> None:
        """So many places were filled. A shorter datagram is the last."""
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
    """Hands out trains; made when first needed, at most MAX_TRAINS, and kept."""

    def __init__(self) -> None:
        self._free: list[Train] = []
        self._made = 0

    def take(self) -> Train | None:
        """None: all are in use."""
        if self._free:
            return self._free.pop()
        if self._made == MAX_TRAINS:
            return None
        self._made += 1
        return Train()

    def give_back(self, train: Train) -> None:
        self._free.append(train)


def count_datagrams(data: bytes | memoryview, size: int) -> int:
    """How many datagrams are in what a bind is given to send; `size` 0 is one."""
    return -(-len(data) // size) if size else 1
