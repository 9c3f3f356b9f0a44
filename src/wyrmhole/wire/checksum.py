"""The Internet checksum: RFC 1071, incremental update (RFC 1624), TCP and UDP pseudo-headers.

Theory of operation. 2**16 is congruent to 1 modulo 0xFFFF. A buffer read as one big integer is therefore congruent to
the ones' complement sum of its 16-bit words, and `int.from_bytes` and `%` compute in C what would otherwise be a loop
in Python. Little endian reading swaps the bytes of the words and of their sum (RFC 1071, 2(B)), but pads an odd last
byte on the correct side at no cost. `%` divides a long integer digit by digit; folding the integer in halves first, at
multiples of 16 bits, is twice as fast at the size of a packet.

Sums have two forms. `ones_sum` and `checksum` follow the RFCs: words in network order, 0..0xFFFF, zero only for
all-zero data. `residue` serves the packet path: it is byte-swapped and modulo 0xFFFF, so that 0 also stands for 0xFFFF.
Shifted left by 8 bits, it is congruent to the sum in network order.
"""

from __future__ import annotations

from wyrmhole.wire.buffer import Buffer

_CHUNK = 1408
"""Bytes folded at once: about one inner packet, and a multiple of 16 that halves three times."""
_SHORT = 640
"""The size in bytes up to which one division is not slower than the folds."""
_BITS_1, _BITS_2, _BITS_3 = 4 * _CHUNK, 2 * _CHUNK, _CHUNK
_MASK_1, _MASK_2, _MASK_3 = (1 << _BITS_1) - 1, (1 << _BITS_2) - 1, (1 << _BITS_3) - 1


def residue(data: Buffer) -> int:
    """Return the byte-swapped sum of the 16-bit words modulo 0xFFFF: 0..0xFFFE. An odd last byte is zero-padded."""
    size = len(data)
    if size <= _SHORT:
        return int.from_bytes(data, "little") % 0xFFFF
    total = int.from_bytes(data, "little") if size <= _CHUNK + 128 else _sum_of_chunks(data)
    total = (total & _MASK_1) + (total >> _BITS_1)
    total = (total & _MASK_2) + (total >> _BITS_2)
    return ((total & _MASK_3) + (total >> _BITS_3)) % 0xFFFF


def _sum_of_chunks(data: Buffer) -> int:
    return sum(int.from_bytes(data[at : at + _CHUNK], "little") for at in range(0, len(data), _CHUNK))


def ones_sum(data: Buffer) -> int:
    """Return the ones' complement sum of the words (RFC 1071): 0..0xFFFF, and 0 only if all bytes are zero."""
    swapped = residue(data)
    if swapped == 0:
        return 0xFFFF if any(data) else 0
    return (swapped << 8) % 0xFFFF


def add(*sums: int) -> int:
    """Return the ones' complement sum of sums: 0..0xFFFF, and 0 only if all are zero."""
    total = sum(sums)
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: Buffer, initial: int = 0) -> int:
    """Return the checksum of `data`, whose checksum field is zero. `initial` is the sum of a pseudo-header."""
    return add(ones_sum(data), initial) ^ 0xFFFF


def pseudo_header_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """Return the sum of a pseudo-header: source and destination address (8 or 32 bytes together), protocol and length.

    The formats are those of RFC 9293 3.1 and RFC 8200 8.1.
    """
    return add(ones_sum(addresses), protocol, length)


def update(field: int, before: int, after: int) -> int:
    """Return the checksum field after one 16-bit word of the data changed (RFC 1624, equation 3)."""
    return add(field ^ 0xFFFF, before ^ 0xFFFF, after) ^ 0xFFFF
