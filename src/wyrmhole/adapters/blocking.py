"""What the adapters of blocking libraries ask of a tunnel."""

from __future__ import annotations

import socket
from typing import Protocol


class BlockingDialer(Protocol):
    """The tunnel of `wyrmhole.sync.open`, as far as needed here."""

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """As socket.create_connection; names are resolved inside. Raises OSError."""
