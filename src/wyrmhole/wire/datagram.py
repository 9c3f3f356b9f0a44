"""A received datagram, or a GRO train of them."""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.wire.endpoint import SockAddr

MAX_TRAIN_SEGMENTS = 64
"""The most datagrams of a GSO batch and segments of a USO super-packet: UDP_MAX_SEGMENTS of kernels before 6.9."""


@dataclass(slots=True)
class Received:
    """One datagram, or a GRO train of them from one sender. `view` is valid until the next `receive`.

    If `segment_size` is not 0, the view holds datagrams of that size, of which the last may be shorter; otherwise it
    holds one datagram. `source` is the local address and interface at which it arrived, in the form that `send` takes,
    or None if unknown. `tos` is the outer TOS or traffic class byte, equal for the whole train; its low two bits are
    ECN (RFC 3168).
    """

    view: memoryview
    segment_size: int
    sockaddr: SockAddr
    source: bytes | None
    tos: int = 0
