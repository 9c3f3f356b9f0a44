"""Messages of the kernel's routing socket, which contain nested lengths."""

from __future__ import annotations

from wyrmhole.net.netlink import parse_attributes, parse_link_index, parse_messages


def TestOneInput(data: bytes) -> None:
    """Parsing never raises, always ends, and never reads outside the enclosing message."""
    total = 0
    for message in parse_messages(data):
        total += 16 + len(message.payload)
        attributes = parse_attributes(message.payload, 16)
        assert sum(4 + len(value) for value in attributes.values()) <= max(len(message.payload) - 16, 0)
        assert parse_link_index(message) < 1 << 32
    assert total <= len(data)
