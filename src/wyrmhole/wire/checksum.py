"""The internet checksum (RFC 1071): ones-complement sums of 16-bit words, in C speed and without a dependency.

A buffer read as one big integer is, modulo 2^16 - 1, the sum of its 16-bit words, because 2^16 is 1 there. Read in
little-endian order (faster, and odd lengths come out right, as if a zero byte followed) the sum has its bytes swapped.
Dividing a long integer costs more than adding its two halves, and 2^(16 k) is 1 as well, so long ones are folded first.

0 and 0xFFFF are the same sum. The functions return 0xFFFF for neither-or-both only where data was all zeros: a
`checksum` of anything else is what RFC 1071's arithmetic gives.
"""

from __future__ import annotations

from wyrmhole.wire.buffer import Buffer

_FOLD_ABOVE = 192
_MAX_FOLDS = 1024
_folds: dict[int, tuple[tuple[int, int], ...]] = {}


def ones_sum(data: Buffer) -> int:
    """The sum of the big-endian 16-bit words, 0..0xFFFE (0 stands for 0xFFFF too)."""
    value = int.from_bytes(data, "little")
    length = len(data)
    if length > _FOLD_ABOVE:
        for half, mask in _folds.get(length) or _fold_steps(length):
            value = (value >> half) + (value & mask)
    value %= 0xFFFF
    return value >> 8 | (value & 0xFF) << 8


def checksum(data: Buffer, initial: int = 0) -> int:
    """The value of a checksum field over data in which that field is zero."""
    return complement(ones_sum(data) + initial)


def complement(total: int) -> int:
    """The checksum of a sum of words that were not all zero."""
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def pseudo_header_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """What TCP and UDP add (RFC 9293 3.1, RFC 8200 8.1): both addresses, protocol, length of header and payload."""
    return (ones_sum(addresses) + protocol + (length >> 16) + (length & 0xFFFF)) % 0xFFFF


def update(field: int, old: int, new: int) -> int:
    """The checksum after one 16-bit word changed (RFC 1624, equation 3)."""
    return complement((0xFFFF - field) + (0xFFFF - old) + new)


def _fold_steps(length: int) -> tuple[tuple[int, int], ...]:
    """How to halve an integer of this many bytes until it is short: (bits, mask) for each step."""
    steps = []
    bits = length * 8
    while bits > _FOLD_ABOVE * 8:
        half = (bits // 2 + 15) // 16 * 16
        steps.append((half, (1 << half) - 1))
        bits = half + 1
    if len(_folds) >= _MAX_FOLDS:
        _folds.clear()
    _folds[length] = tuple(steps)
    return _folds[length]
