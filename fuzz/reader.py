"""Turns the fuzzer's bytes into decisions. Behind their end everything is zero, so that short inputs stay valid."""

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
        """At most `count` bytes: what is left."""
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
        """0 .. count - 1, of at most 256."""
        return self.byte() % count

    def block(self) -> bytes:
        """Bytes with their length, 0 to 255, in front."""
        return self.take(self.byte())
