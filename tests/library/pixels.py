"""Read PNG files like those of browsers: 3 or 4 channels of 8 bits, not interlaced."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from pathlib import Path


def colors(path: Path) -> Counter[tuple[int, int, int]]:
    """Return how often each colour occurs (ISO/IEC 15948: chunks, zlib, and a filter byte before each line)."""
    width, height, channels, data = read(path.read_bytes())
    line = bytearray(width * channels)
    found: Counter[tuple[int, int, int]] = Counter()
    for row in range(height):
        start = row * (len(line) + 1)
        line = unfilter(data[start], data[start + 1 : start + 1 + len(line)], line, channels)
        found.update(zip(line[0::channels], line[1::channels], line[2::channels], strict=True))
    return found


def read(png: bytes) -> tuple[int, int, int, bytes]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    offset, packed, header = 8, b"", b""
    while offset < len(png):
        (size,) = struct.unpack_from(">I", png, offset)
        kind, body = png[offset + 4 : offset + 8], png[offset + 8 : offset + 8 + size]
        packed += body if kind == b"IDAT" else b""
        header = body if kind == b"IHDR" else header
        offset += 12 + size
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    assert (depth, interlaced) == (8, 0)
    return width, height, {2: 3, 6: 4}[color], zlib.decompress(packed)


def unfilter(kind: int, raw: bytes, above: bytearray, step: int) -> bytearray:
    line = bytearray(raw)
    for at in range(len(line)):
        left = line[at - step] if at >= step else 0
        corner = above[at - step] if at >= step else 0
        guess = (0, left, above[at], (left + above[at]) // 2, paeth(left, above[at], corner))[kind]
        line[at] = (line[at] + guess) & 255
    return line


def paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda each: abs(guess - each))
