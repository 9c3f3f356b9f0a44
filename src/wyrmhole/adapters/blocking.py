"""The part of a blocking tunnel that adapters use."""

from __future__ import annotations

import socket
from typing import Protocol


class BlockingDialer(Protocol):
    """The part of a tunnel of `wyrmhole.sync.open` that adapters use."""

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """Like socket.create_connection, but names are resolved inside the tunnel. Raises OSError."""
