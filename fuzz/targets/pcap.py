"""Capture files."""

from __future__ import annotations

from tests.support.pcap import FileHeader, PcapError, parse_file


def TestOneInput(data: bytes) -> None:
    """A file parses up to where PcapError says; its records, written again, parse to the same."""
    records = []
    try:
        header = FileHeader.parse(data)
        for record in parse_file(data):
            records.append(record)
    except PcapError:
        if not records:
            return
    assert sum(record.size for record in records) <= len(data)
    try:
        written = header.emit() + b"".join(record.emit(header) for record in records)
    except PcapError:
        # More than a second's worth of ticks carries into seconds that do not fit.
        return
    assert list(parse_file(written)) == records
