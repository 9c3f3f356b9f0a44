"""TUN frames: the virtio-net header, splitting super-packets into packets, coalescing packets into super-packets."""

from __future__ import annotations

from wyrmhole.wire.tun_coalesce import Coalescer, Frame, plain
from wyrmhole.wire.tun_split import MAX_SEGMENTS, complete, split
from wyrmhole.wire.virtio import (
    F_DATA_VALID,
    F_NEEDS_CSUM,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    PLAIN_HEADER,
    VIRTIO_HEADER_SIZE,
    OffloadError,
    VirtioHeader,
)

__all__ = [
    "F_DATA_VALID",
    "F_NEEDS_CSUM",
    "GSO_ECN",
    "GSO_NONE",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP_L4",
    "MAX_SEGMENTS",
    "PLAIN_HEADER",
    "VIRTIO_HEADER_SIZE",
    "Coalescer",
    "Frame",
    "OffloadError",
    "VirtioHeader",
    "complete",
    "plain",
    "split",
]
