"""httpx2 through a tunnel.

async with httpx2.AsyncClient(transport=AsyncTunnelTransport(tunnel)) as client:
    page = await client.get("https://intranet/")
"""

from __future__ import annotations

import ssl
from typing import cast

from wyrmhole.adapters import http_core
from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.adapters.extra import needed
from wyrmhole.library.services.dialer import Dialer

with needed("httpx2"):
    import httpcore2
    import httpx2

LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
"""Those of httpx2 itself."""


class AsyncTunnelTransport(httpx2.AsyncBaseTransport):
    """For `httpx2.AsyncClient(transport=...)`. Names are resolved inside the tunnel.

    `verify` is True for the usual certificates, or an SSLContext, as for an inner authority. Raises what httpx2 raises.
    """

    def __init__(
        self,
        tunnel: Dialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx2.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=cast(httpcore2.AsyncNetworkBackend, http_core.AsyncBackend(tunnel, httpcore2)),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with http_core.in_terms_of(httpx2, httpcore2):
            answer = await self._pool.handle_async_request(http_core.core_request(httpcore2, request))
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_AsyncBody(answer.stream, httpx2, httpcore2),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class TunnelTransport(httpx2.BaseTransport):
    """For `httpx2.Client(transport=...)`, with a tunnel of `wyrmhole.sync.open`. Otherwise as the other one."""

    def __init__(
        self,
        tunnel: BlockingDialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx2.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=cast(httpcore2.NetworkBackend, http_core.BlockingBackend(tunnel, httpcore2)),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with http_core.in_terms_of(httpx2, httpcore2):
            answer = self._pool.handle_request(http_core.core_request(httpcore2, request))
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer.stream, httpx2, httpcore2),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _AsyncBody(http_core.AsyncBody, httpx2.AsyncByteStream):
    pass


class _Body(http_core.BlockingBody, httpx2.SyncByteStream):
    pass
