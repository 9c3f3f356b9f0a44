"""aiohttp through a tunnel.

async with aiohttp.ClientSession(connector=TunnelConnector(tunnel)) as session:
    async with session.get("https://intranet/") as answer:
        page = await answer.text()
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

from wyrmhole.adapters.extra import needed
from wyrmhole.library.common.explain import UNANSWERED, reasons
from wyrmhole.library.common.time_limit import addresses_of
from wyrmhole.library.services.dialer import Dialer

with needed("aiohttp"):
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

REASON_SECONDS = 0.5
"""Limit of the look-up that finds the reason of an error. The name was just resolved."""


class SocketDialer(Dialer, Protocol):
    """A tunnel that opens sockets synchronously, because aiohttp requires it."""

    def socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> socket.socket: ...


class TunnelConnector(aiohttp.TCPConnector):
    """For `aiohttp.ClientSession(connector=...)`. `options` are those of TCPConnector, such as `ssl`.

    Names are resolved inside the tunnel and cached for their TTL; aiohttp's own cache is switched off.
    Raises the exceptions of aiohttp.
    """

    def __init__(self, tunnel: SocketDialer, **options: Any) -> None:
        options.setdefault("use_dns_cache", False)
        super().__init__(
            resolver=TunnelResolver(tunnel), socket_factory=lambda info: tunnel.socket(info[0], info[1]), **options
        )
        self._tunnel = tunnel
        self._explain: Callable[[str], str] | None = getattr(tunnel, "explain", None)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp.BaseConnector. aiohttp connects the sockets itself, so the reason is added to its errors."""
        try:
            return await super().connect(req, traces, timeout)
        except aiohttp.ClientConnectorDNSError:
            raise
        except aiohttp.ClientConnectorError as error:
            reason = await self._reason(req) if error.errno in UNANSWERED else ""
            if not reason:
                raise
            text = f"{error.os_error.strerror or error.os_error}; {reason}"
            raise type(error)(error._conn_key, OSError(error.errno, text)) from error
        except TimeoutError as error:
            # aiohttp replaces this error by its own, and chains it as the cause.
            text = f"{req.url.host} did not answer in time"
            raise TimeoutError("; ".join(filter(None, [text, await self._reason(req)]))) from error

    async def _reason(self, req: aiohttp.ClientRequest) -> str:
        """Return the tunnel's explanation for the host's addresses, which it has just resolved."""
        if self._explain is None:
            return ""
        try:
            async with asyncio.timeout(REASON_SECONDS):
                infos = await self._tunnel.getaddrinfo(str(req.url.host), 0)
        except OSError:
            return ""
        return reasons(addresses_of(infos), self._explain)


class TunnelResolver(AbstractResolver):
    """Resolves names for aiohttp. Raises OSError, which aiohttp converts to ClientConnectorDNSError."""

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
        """Do nothing: the resolver owns no resources, and the tunnel stays open."""
