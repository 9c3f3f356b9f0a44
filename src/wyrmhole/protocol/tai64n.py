"""TAI64N timestamps of initiations (whitepaper 5.1, 5.4.2): 12 bytes that compare as big-endian numbers.

The sub-second part is coarsened so that a timestamp tells less about a machine's load: the low 24 bits of the
nanoseconds are cleared, a step of about 16.8 ms. Two attempts inside one step, or after the wall clock went back,
would repeat a timestamp and be refused as replays, so `next_stamp` moves at least one step past the last one sent.
"""

from __future__ import annotations

import struct

from wyrmhole.protocol.constants import SECOND

STEP = 1 << 24
_BASE = 0x400000000000000A
_LAYOUT = struct.Struct(">QI")


def emit(wall_ns: int) -> bytes:
    """The coarsened timestamp of a wall-clock time in nanoseconds since 1970 (negative times count as 0)."""
    seconds, nanoseconds = divmod(max(wall_ns, 0), SECOND)
    return _LAYOUT.pack(_BASE + seconds, nanoseconds & ~(STEP - 1))


def parse(stamp: bytes) -> int:
    """Nanoseconds since 1970 of a timestamp that `emit` made."""
    seconds, nanoseconds = _LAYOUT.unpack(stamp)
    return int((seconds - _BASE) * SECOND + nanoseconds)


def next_stamp(wall_ns: int, last: bytes | None) -> bytes:
    """The timestamp to send: the present, or one step past the last one if the clock has not moved past it."""
    stamp = emit(wall_ns)
    if last is None or stamp > last:
        return stamp
    stepped = emit(parse(last) + STEP)
    return stepped if stepped > last else emit((parse(last) // SECOND + 1) * SECOND)
