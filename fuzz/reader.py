"""A reader that turns the fuzzer's bytes into decisions. It reads zeros past the end, so short inputs are valid."""

from __future__ import annotations


class Reader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def byte(self) -> int:
        return self.integer(1)

    def choose(self, count: int) -> int:
        """Return a number below `count`, which is at most 256."""
        return self.byte() % count

    def block(self) -> bytes:
        """Return bytes that are preceded by their length, 0 to 255."""
        return self.take(self.byte())
