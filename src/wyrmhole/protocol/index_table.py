"""The table from 32-bit receiver indices to pending handshakes and sessions.

Each attempt draws a new random index, so that an observer cannot learn from indices how many peers there are or which
sessions belong together (whitepaper 5.4.2). 0 is never drawn, because it means "none" in other places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class IndexTable(Generic[T]):
    """A table whose size its user bounds: an entry lives as long as the handshake or keypair that drew it."""

    __slots__ = ("_entries", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._entries: dict[int, T] = {}

    def insert(self, value: T) -> int:
        """Draw an unused index for the value."""
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index and index not in self._entries:
                self._entries[index] = value
                return index

    def replace(self, index: int, value: T) -> None:
        """Change the value of an index, because the handshake became a session under the same index."""
        self._entries[index] = value

    def get(self, index: int) -> T | None:
        return self._entries.get(index)

    def remove(self, index: int) -> None:
        """Free the index. An unknown index is ignored."""
        self._entries.pop(index, None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, index: int) -> bool:
        return index in self._entries
