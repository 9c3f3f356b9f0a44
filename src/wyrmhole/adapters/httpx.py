"""httpx through a tunnel.

async with httpx.AsyncClient(transport=AsyncTunnelTransport(tunnel)) as client:
    page = await client.get("https://intranet/")
"""

from __future__ import annotations

import ssl
from typing import cast

from wyrmhole.adapters import http_core
from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.adapters.extra import needed
from wyrmhole.library.services.dialer import Dialer

with needed("httpx"):
    import httpcore
    import httpx

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
"""Those of httpx itself."""


class AsyncTunnelTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=...)`. Names are resolved inside the tunnel.

    `verify` is True for the usual certificates, or an SSLContext, as for an inner authority. Raises what httpx raises.
    """

    def __init__(
        self,
        tunnel: Dialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=cast(httpcore.AsyncNetworkBackend, http_core.AsyncBackend(tunnel, httpcore)),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with http_core.in_terms_of(httpx, httpcore):
            answer = await self._pool.handle_async_request(http_core.core_request(httpcore, request))
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_AsyncBody(answer.stream, httpx, httpcore),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class TunnelTransport(httpx.BaseTransport):
    """For `httpx.Client(transport=...)`, with a tunnel of `wyrmhole.sync.open`. Otherwise as the other one."""

    def __init__(
        self,
        tunnel: BlockingDialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=cast(httpcore.NetworkBackend, http_core.BlockingBackend(tunnel, httpcore)),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with http_core.in_terms_of(httpx, httpcore):
            answer = self._pool.handle_request(http_core.core_request(httpcore, request))
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer.stream, httpx, httpcore),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _AsyncBody(http_core.AsyncBody, httpx.AsyncByteStream):
    pass


class _Body(http_core.BlockingBody, httpx.SyncByteStream):
    pass
