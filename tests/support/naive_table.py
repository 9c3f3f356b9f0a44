"""Allowed IPs implemented in the obvious way, to compare with the trie."""

from __future__ import annotations

from wyrmhole.wire.prefix import Prefix


class NaiveTable:
    """A list of (prefix, owner). The longest matching prefix wins."""

    def __init__(self) -> None:
        self.entries: dict[Prefix, str] = {}

    def lookup(self, version: int, address: int) -> str | None:
        found = [
            (prefix.length, owner)
            for prefix, owner in self.entries.items()
            if prefix.version == version
            and address >> (prefix.bits - prefix.length) == prefix.network >> (prefix.bits - prefix.length)
        ]
        return max(found)[1] if found else None
