"""The Internet checksum: RFC 1071, incremental update (RFC 1624), TCP and UDP pseudo-headers.

Theory of operation. 2**16 is 1 modulo 0xFFFF, so a buffer read as one big integer is, modulo 0xFFFF, the ones'
complement sum of its 16-bit words: `int.from_bytes` and `%` do in C what a loop over words would do in Python.
Read little endian, the words come out byte-swapped, and so does their sum (RFC 1071, 2(B)); in exchange an odd last
byte is padded at the right end, for nothing. `%` divides a long integer digit by digit; folding it in halves at
multiples of 16 bits first leaves it a short one, which is twice as fast at the size of a packet.

Two forms of a sum are in use. `ones_sum` and `checksum` give what the RFCs mean: words in network order, 0..0xFFFF,
zero only for all-zero data. `residue` is for the packet path: byte-swapped and modulo 0xFFFF, so that 0 stands for
0xFFFF too. Shifted left by 8 bits it is, modulo 0xFFFF, the sum in network order.
"""

from __future__ import annotations

from wyrmhole.wire.buffer import Buffer

_CHUNK = 1408
"""Bytes folded at once: about one inner packet, and a multiple of 16 that halves three times."""
_SHORT = 640
"""Up to so many bytes, one division costs no more than the folds."""
_BITS_1, _BITS_2, _BITS_3 = 4 * _CHUNK, 2 * _CHUNK, _CHUNK
_MASK_1, _MASK_2, _MASK_3 = (1 << _BITS_1) - 1, (1 << _BITS_2) - 1, (1 << _BITS_3) - 1


def residue(data: Buffer) -> int:
    """The sum of the 16-bit words, byte-swapped, modulo 0xFFFF: 0..0xFFFE. An odd last byte is padded with zero."""
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
    """The ones' complement sum of the words in network order (RFC 1071): 0..0xFFFF, 0 only if all bytes are zero."""
    swapped = residue(data)
    if swapped == 0:
        return 0xFFFF if any(data) else 0
    return (swapped << 8) % 0xFFFF


def add(*sums: int) -> int:
    """The ones' complement sum of sums: 0..0xFFFF, 0 only if all are zero."""
    total = sum(sums)
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: Buffer, initial: int = 0) -> int:
    """The checksum field for `data`, whose own field is zero; `initial` is a sum to start from (a pseudo-header)."""
    return add(ones_sum(data), initial) ^ 0xFFFF


def pseudo_header_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """Source and destination address (8 or 32 bytes), upper protocol and length (RFC 9293 3.1, RFC 8200 8.1)."""
    return add(ones_sum(addresses), protocol, length)


def update(field: int, before: int, after: int) -> int:
    """The checksum field after one 16-bit word of the data changed (RFC 1624, equation 3)."""
    return add(field ^ 0xFFFF, before ^ 0xFFFF, after) ^ 0xFFFF
