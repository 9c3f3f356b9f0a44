"""Checksums by one division modulo 0xFFFF, compared with words added one by one."""

from __future__ import annotations

import struct

from fuzz.reader import Reader
from wyrmhole.wire.checksum import checksum, ones_sum, residue, update

_SHORT, _LONG = 3_000, 65_535
"""Above _SHORT the sum is computed in chunks. A buffer of _LONG is slow, so only one run in 16 uses it."""


def word_sum(data: bytes) -> int:
    """Add the words one by one, and the carries at the end (RFC 1071)."""
    padded = data + b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def field(data: bytes) -> int:
    return ~word_sum(data) & 0xFFFF


def TestOneInput(data: bytes) -> None:
    """Short, long and odd buffers have the sum of their words, and a changed word the field of the changed buffer."""
    reader = Reader(data)
    repeats, at, word = 1 + reader.byte() * reader.byte(), reader.integer(2), reader.take(2).ljust(2, b"\0")
    buffer = (reader.rest() * repeats)[: _LONG if repeats & 15 == 1 else _SHORT]
    slow = word_sum(buffer)
    assert ones_sum(buffer) == slow
    assert checksum(buffer) == field(buffer)
    assert residue(buffer) == int.from_bytes(slow.to_bytes(2, "big"), "little") % 0xFFFF
    at = at % (len(buffer) or 1) & ~1
    if at + 2 <= len(buffer):
        changed = buffer[:at] + word + buffer[at + 2 :]
        before, after = (int.from_bytes(each[at : at + 2], "big") for each in (buffer, changed))
        assert update(field(buffer), before, after) % 0xFFFF == field(changed) % 0xFFFF
