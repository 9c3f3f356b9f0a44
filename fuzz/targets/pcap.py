"""Capture files."""

from __future__ import annotations

from tests.support.pcap import FileHeader, PcapError, parse_file


def TestOneInput(data: bytes) -> None:
    """A file parses completely or until PcapError is raised. Its records, written again, parse to the same records."""
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
        # A fraction of more than one second carries into the seconds, which may then exceed their field.
        return
    assert list(parse_file(written)) == records
