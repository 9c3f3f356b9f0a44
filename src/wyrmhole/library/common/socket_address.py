"""The types of socket addresses that `socket` accepts and returns."""

from __future__ import annotations

from typing import TypeAlias

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""Host and port, and for IPv6 also flow information and scope id. The host is numeric."""
AddressInfo: TypeAlias = tuple[int, int, int, str, SocketAddress]
"""An entry of socket.getaddrinfo: family, type, protocol, canonical name, socket address."""
