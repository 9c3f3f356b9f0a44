"""TAI64N timestamps of initiations (whitepaper 5.1, 5.4.2): 12 bytes that compare as big-endian numbers.

The sub-second part is coarsened so that a timestamp reveals less about a machine's load: the low 24 bits of the
nanoseconds are cleared, which makes a step of about 16.8 ms. An attempt in the same step as the last one, or after the
wall clock was set back, would not have a greater timestamp and would be refused as a replay. `next_stamp` therefore
returns at least one step more than the last timestamp sent.
"""

from __future__ import annotations

import struct

from wyrmhole.protocol.constants import SECOND

STEP = 1 << 24
_BASE = 0x400000000000000A
_LAYOUT = struct.Struct(">QI")


def emit(wall_ns: int) -> bytes:
    """Return the coarsened timestamp of a wall-clock time in nanoseconds since 1970. Negative times count as 0."""
    seconds, nanoseconds = divmod(max(wall_ns, 0), SECOND)
    return _LAYOUT.pack(_BASE + seconds, nanoseconds & ~(STEP - 1))


def parse(stamp: bytes) -> int:
    """Return the nanoseconds since 1970 of a timestamp made by `emit`."""
    seconds, nanoseconds = _LAYOUT.unpack(stamp)
    return int((seconds - _BASE) * SECOND + nanoseconds)


def next_stamp(wall_ns: int, last: bytes | None) -> bytes:
    """Return the present timestamp, or one step more than the last if the clock is not past it."""
    stamp = emit(wall_ns)
    if last is None or stamp > last:
        return stamp
    stepped = emit(parse(last) + STEP)
    return stepped if stepped > last else emit((parse(last) // SECOND + 1) * SECOND)
