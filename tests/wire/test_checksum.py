"""The Internet checksum, compared with a loop over words and with published packets."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.packets import word_sum
from wyrmhole.wire import checksum


def test_the_example_of_rfc_1071() -> None:
    """Section 3: 0001 f203 f4f5 f6f7 sum to ddf2."""
    assert checksum.ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_a_published_ipv4_header() -> None:
    header = bytes.fromhex("450000730000400040110000c0a80001c0a800c7")
    assert checksum.checksum(header) == 0xB861
    assert checksum.checksum(header[:10] + b"\xb8\x61" + header[12:]) == 0


def test_every_length_up_to_200_equals_a_word_loop() -> None:
    source = random.Random(1071)
    for length in range(201):
        data = source.randbytes(length)
        assert checksum.ones_sum(data) == word_sum(data), length


def test_lengths_around_every_fold_equal_a_word_loop() -> None:
    source = random.Random(1072)
    for length in (639, 640, 641, 703, 704, 705, 1407, 1408, 1409, 1420, 1535, 1536, 1537, 2816, 2817, 9000, 65535):
        data = source.randbytes(length)
        assert checksum.ones_sum(data) == word_sum(data), length


def test_saturated_words_carry_at_every_length() -> None:
    for length in (2, 200, 640, 642, 1408, 1420, 1536, 1538, 2816, 65535):
        data = b"\xff" * length
        assert checksum.ones_sum(data) == word_sum(data), length


def test_only_zeros_sum_to_zero() -> None:
    assert checksum.ones_sum(bytes(1400)) == 0
    assert checksum.ones_sum(b"") == 0
    assert checksum.ones_sum(b"\xff\xff" + bytes(1400)) == 0xFFFF
    assert checksum.checksum(bytes(20)) == 0xFFFF
    assert checksum.checksum(b"\xff\xff") == 0


@given(st.binary(max_size=3000))
def test_residue_is_the_sum_byte_swapped(data: bytes) -> None:
    assert (checksum.residue(data) << 8) % 0xFFFF == word_sum(data) % 0xFFFF


@given(st.binary(max_size=1600))
def test_any_buffer_gives_the_same_sum(data: bytes) -> None:
    assert checksum.ones_sum(data) == checksum.ones_sum(bytearray(data)) == checksum.ones_sum(memoryview(data))


@given(st.binary(max_size=64), st.integers(0, 0xFFFF))
def test_an_initial_sum_counts_like_a_leading_word(data: bytes, initial: int) -> None:
    assert checksum.checksum(data, initial) == checksum.checksum(initial.to_bytes(2, "big") + data)


@given(
    st.binary(min_size=8, max_size=8) | st.binary(min_size=32, max_size=32), st.integers(0, 255), st.integers(0, 70000)
)
def test_the_pseudo_header_sum_equals_that_of_its_bytes(addresses: bytes, protocol: int, length: int) -> None:
    written = addresses + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")
    assert checksum.pseudo_header_sum(addresses, protocol, length) == word_sum(written)


@given(st.binary(min_size=4, max_size=40).filter(any), st.integers(0, 0xFFFF))
def test_an_incremental_update_equals_a_fresh_checksum(data: bytes, after: int) -> None:
    data = b"\x45" + data
    changed = after.to_bytes(2, "big")
    updated = checksum.update(checksum.checksum(data), int.from_bytes(data[2:4], "big"), after)
    assert updated == checksum.checksum(data[:2] + changed + data[4:])


def test_the_update_of_rfc_1624() -> None:
    """Section 4: the earlier method of RFC 1141 gives 0xFFFF here."""
    assert checksum.update(0xDD2F, 0x5555, 0x3285) == 0x0000
