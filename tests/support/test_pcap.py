"""Capture files in the format that tcpdump reads."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pcap import LINKTYPE_RAW, FileHeader, PcapError, Record, parse_file

words = st.integers(0, 2**32 - 1)
headers = st.builds(FileHeader, words, st.integers(0, 0xFFFF), st.sampled_from([1, 1000]), st.sampled_from(["<", ">"]))


def test_file_header_in_bytes() -> None:
    expected = bytes.fromhex("4d3cb2a1 0200 0400 00000000 00000000 00000400 65000000")
    assert FileHeader().emit() == expected
    assert FileHeader.parse(expected) == FileHeader(262_144, LINKTYPE_RAW)


def test_record_in_bytes() -> None:
    record = Record.of(1_700_000_000_000_000_123, b"abcdef", snap_length=4)
    expected = struct.pack("<IIII", 1_700_000_000, 123, 4, 6) + b"abcd"
    assert record.emit(FileHeader()) == expected
    assert Record.parse(FileHeader(), expected) == record


def test_microseconds_in_big_endian_are_read() -> None:
    data = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101) + struct.pack(">IIII", 5, 7, 1, 9) + b"x"
    assert list(parse_file(data)) == [Record(5_000_007_000, b"x", 9)]


@given(headers, st.lists(st.tuples(st.integers(0, 2**32 * 10**9 - 1), st.binary(max_size=40), words), max_size=5))
def test_emitted_file_is_parsed_back(header: FileHeader, packets: list[tuple[int, bytes, int]]) -> None:
    tick = header.nanoseconds
    records = [Record(time // tick * tick, data, original) for time, data, original in packets]
    file = header.emit() + b"".join(record.emit(header) for record in records)
    assert FileHeader.parse(file) == header
    assert list(parse_file(file)) == records


def test_file_truncated_within_a_record_is_an_error() -> None:
    file = FileHeader().emit() + Record.of(0, b"abc").emit(FileHeader())
    for size in range(len(file)):
        if size != 24:
            with pytest.raises(PcapError):
                list(parse_file(file[:size]))
    assert list(parse_file(file[:24])) == []


def test_impossibly_long_record_is_refused_before_it_is_read() -> None:
    with pytest.raises(PcapError, match="longer than any packet"):
        Record.parse(FileHeader(), struct.pack("<IIII", 0, 0, 262_145, 0))
    with pytest.raises(PcapError):
        Record(0, bytes(262_145), 262_145).emit(FileHeader())


@pytest.mark.parametrize("record", [Record(-1, b"", 0), Record(2**32 * 10**9, b"", 0), Record(0, b"", 2**32)])
def test_values_that_do_not_fit_are_refused(record: Record) -> None:
    with pytest.raises(PcapError):
        record.emit(FileHeader())
    with pytest.raises(PcapError):
        FileHeader(snap_length=-1).emit()


def test_unknown_version_is_refused() -> None:
    with pytest.raises(PcapError, match=r"2\.3"):
        FileHeader.parse(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 3, 0, 0, 65535, 101))


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: FileHeader().emit() + rest))
def test_any_bytes_are_records_or_a_pcap_error(data: bytes) -> None:
    with contextlib.suppress(PcapError):
        list(parse_file(data))
