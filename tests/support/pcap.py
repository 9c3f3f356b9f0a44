"""The classic pcap file format (draft-ietf-opsawg-pcap), as tcpdump and Wireshark read it.

A file is a 24-byte header followed by records, each a 16-byte header and a packet. Files are written in little endian
with nanosecond timestamps, and read in either byte order and either resolution.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from wyrmhole.wire.buffer import Buffer

LINKTYPE_RAW = 101
"""Records are IP packets without a link-layer header."""
FILE_HEADER_SIZE = 24
RECORD_HEADER_SIZE = 16
MAX_SNAP_LENGTH = 262_144
"""The longest record that libpcap accepts (MAXIMUM_SNAPLEN)."""

_MAGIC_MICROSECONDS = 0xA1B2C3D4
_MAGIC_NANOSECONDS = 0xA1B23C4D
_RESOLUTIONS = {_MAGIC_MICROSECONDS: 1000, _MAGIC_NANOSECONDS: 1}
_VERSION = (2, 4)
_SECOND = 1_000_000_000


class PcapError(ValueError):
    """Invalid bytes of a header or record, or a value that does not fit into one."""


@dataclass(frozen=True, slots=True)
class FileHeader:
    """`snap_length` limits the captured bytes of a packet. `nanoseconds` is the resolution of timestamps."""

    snap_length: int = MAX_SNAP_LENGTH
    link_type: int = LINKTYPE_RAW
    nanoseconds: int = 1
    byte_order: str = "<"

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Parse the first 24 bytes of a file. Raises PcapError."""
        if len(data) < FILE_HEADER_SIZE:
            raise PcapError(f"a pcap file begins with {FILE_HEADER_SIZE} bytes of header")
        for byte_order in "<>":
            magic, major, minor, _, _, snap_length, link = struct.unpack_from(byte_order + "IHHiIII", data)
            if magic in _RESOLUTIONS:
                break
        else:
            raise PcapError("no pcap file begins like this")
        if (major, minor) != _VERSION:
            raise PcapError(f"pcap version {major}.{minor} is not 2.4")
        # The upper bits of the link type describe frame check sequences.
        return cls(snap_length, link & 0xFFFF, _RESOLUTIONS[magic], byte_order)

    def emit(self) -> bytes:
        """Return the 24 bytes. Raises PcapError if a value does not fit."""
        magic = _MAGIC_NANOSECONDS if self.nanoseconds == 1 else _MAGIC_MICROSECONDS
        try:
            return struct.pack(self.byte_order + "IHHiIII", magic, *_VERSION, 0, 0, self.snap_length, self.link_type)
        except struct.error as error:
            raise PcapError(f"a value does not fit a pcap file header: {error}") from None


@dataclass(frozen=True, slots=True)
class Record:
    """One packet: wall clock time in nanoseconds, the captured bytes, and the length on the wire."""

    time: int
    data: bytes
    original_length: int

    @classmethod
    def of(cls, time: int, packet: Buffer, snap_length: int = MAX_SNAP_LENGTH) -> Self:
        """Return the record of a packet, truncated to `snap_length`."""
        return cls(time, bytes(packet[:snap_length]), len(packet))

    @classmethod
    def parse(cls, header: FileHeader, data: Buffer) -> Self:
        """Parse the record at the start of `data`. Raises PcapError, also for a truncated or impossibly long record."""
        if len(data) < RECORD_HEADER_SIZE:
            raise PcapError("a record header is cut off")
        seconds, ticks, length, original_length = struct.unpack_from(header.byte_order + "IIII", data)
        if length > MAX_SNAP_LENGTH:
            raise PcapError(f"a record of {length} bytes is longer than any packet")
        if len(data) < RECORD_HEADER_SIZE + length:
            raise PcapError("a record is cut off")
        captured = bytes(data[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + length])
        return cls(seconds * _SECOND + ticks * header.nanoseconds, captured, original_length)

    @property
    def size(self) -> int:
        """The size in the file, including the header."""
        return RECORD_HEADER_SIZE + len(self.data)

    def emit(self, header: FileHeader) -> bytes:
        """Return the bytes. Raises PcapError for a time before 1970 or after 2106, or for a packet that is too long."""
        seconds, rest = divmod(self.time, _SECOND)
        if len(self.data) > MAX_SNAP_LENGTH:
            raise PcapError(f"a record holds at most {MAX_SNAP_LENGTH} bytes")
        try:
            values = (seconds, rest // header.nanoseconds, len(self.data), self.original_length)
            return struct.pack(header.byte_order + "IIII", *values) + self.data
        except struct.error as error:
            raise PcapError(f"a value does not fit a pcap record: {error}") from None


def parse_file(data: Buffer) -> Iterator[Record]:
    """Parse a whole file. Raises PcapError if it is not a pcap file or ends in the middle of a record."""
    header = FileHeader.parse(data)
    rest = memoryview(data)[FILE_HEADER_SIZE:]
    while rest:
        record = Record.parse(header, rest)
        yield record
        rest = rest[record.size :]
