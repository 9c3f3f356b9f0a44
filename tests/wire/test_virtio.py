"""The virtio-net header of a TUN frame."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.wire.virtio import GSO_TCPV4, OffloadError, VirtioHeader

bytes_ = st.integers(0, 255)
words = st.integers(0, 65535)
headers = st.builds(VirtioHeader, bytes_, bytes_, words, words, words, words)


@pytest.mark.skipif(sys.byteorder != "little", reason="the bytes in this test are little endian")
def test_the_header_has_the_documented_layout() -> None:
    header = VirtioHeader(1, GSO_TCPV4, 0x34, 0x0558, 0x14, 0x10)
    assert header.emit() == bytes.fromhex("0101 3400 5805 1400 1000")


@given(headers, st.binary(max_size=40))
def test_parse_inverts_emit(header: VirtioHeader, packet: bytes) -> None:
    assert VirtioHeader.parse(header.emit() + packet) == header


@given(st.binary(max_size=9))
def test_fewer_than_ten_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(OffloadError):
        VirtioHeader.parse(data)


@given(st.binary(min_size=10, max_size=10))
def test_any_ten_bytes_are_a_header(data: bytes) -> None:
    assert VirtioHeader.parse(data).emit() == data


@pytest.mark.parametrize("header", [VirtioHeader(flags=256), VirtioHeader(gso_size=65536), VirtioHeader(csum_start=-1)])
def test_a_field_out_of_range_is_refused(header: VirtioHeader) -> None:
    with pytest.raises(OffloadError):
        header.emit()
