"""The type of arguments that hold bytes."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview
