"""aiohttp through a tunnel.

async with aiohttp.ClientSession(connector=TunnelConnector(tunnel)) as session:
    async with session.get("https://intranet/") as answer:
        page = await answer.text()
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from wyrmhole.adapters.extra import needed
from wyrmhole.library.dialer import Dialer

with needed("aiohttp"):
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult


class SocketDialer(Dialer, Protocol):
    """A tunnel that opens sockets without waiting, because aiohttp asks for them so."""

    def socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> socket.socket: ...


class TunnelConnector(aiohttp.TCPConnector):
    """For `aiohttp.ClientSession(connector=...)`. `options` are those of TCPConnector, such as `ssl`.

    Names are resolved inside the tunnel and kept as long as their records say, so that aiohttp keeps none.
    Raises what aiohttp raises.
    """

    def __init__(self, tunnel: SocketDialer, **options: Any) -> None:
        options.setdefault("use_dns_cache", False)
        super().__init__(
            resolver=TunnelResolver(tunnel), socket_factory=lambda info: tunnel.socket(info[0], info[1]), **options
        )


class TunnelResolver(AbstractResolver):
    """Names for aiohttp. Raises OSError, which aiohttp turns into ClientConnectorDNSError."""

    def __init__(self, tunnel: Dialer) -> None:
        self._tunnel = tunnel

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        infos = await self._tunnel.getaddrinfo(host, port, family=family)
        return [
            ResolveResult(
                hostname=host, host=info[4][0], port=port, family=info[0], proto=info[2], flags=socket.AI_NUMERICHOST
            )
            for info in infos
        ]

    async def close(self) -> None:
        """Nothing of its own: the tunnel stays."""
