"""A received datagram, or a GRO train of them."""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.wire.endpoint import SockAddr

MAX_TRAIN_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of kernels before 6.9: datagrams of one GSO batch, and segments of one USO super-packet."""


@dataclass(slots=True)
class Received:
    """One datagram, or a GRO train of them from one sender. `view` is valid until the next `receive`.

    `segment_size` > 0: the view holds datagrams of that size, the last one maybe shorter. 0: one datagram.
    `source` is the local address and interface it came to, in the form `send` takes; None: not known.
    `tos` is the outer TOS or traffic class byte, the same for a whole train; its low two bits are ECN (RFC 3168).
    """

    view: memoryview
    segment_size: int
    sockaddr: SockAddr
    source: bytes | None
    tos: int = 0
