"""The virtio-net header before every packet of a TUN (virtio 1.2, 5.1.6; the 10 bytes without `num_buffers`).

Integers are in the byte order of the machine. Offsets count from the start of the IP packet that follows the header.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from wyrmhole.wire.buffer import Buffer

VIRTIO_HEADER_SIZE = 10
PLAIN_HEADER = bytes(VIRTIO_HEADER_SIZE)
"""The header of one complete packet without offloads."""

F_NEEDS_CSUM = 1
"""The checksum field at csum_start + csum_offset holds a partial sum, which the receiver of the frame must complete."""
F_DATA_VALID = 2
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""Added to a TCP type: the first segment carries CWR."""

_LAYOUT = struct.Struct("=BBHHHH")


class OffloadError(ValueError):
    """The virtio header is invalid or inconsistent with the packet that follows it."""


class VirtioHeader(NamedTuple):
    """A virtio header. `header_length` is a hint: the size of IP and transport header together.

    `gso_size` is the payload size of one segment.
    """

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @classmethod
    def parse(cls, frame: Buffer) -> Self:
        """Return the header at the start of a frame. Raises OffloadError if the frame is shorter than a header."""
        if len(frame) < VIRTIO_HEADER_SIZE:
            raise OffloadError("a TUN frame is shorter than its virtio header")
        return cls._make(_LAYOUT.unpack_from(frame))

    def emit(self) -> bytes:
        """Return the header as 10 bytes. Raises OffloadError if a field is out of range."""
        try:
            return _LAYOUT.pack(*self)
        except struct.error as error:
            raise OffloadError(f"a field of a virtio header is out of range: {error}") from None
