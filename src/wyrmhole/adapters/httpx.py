"""httpx through a tunnel.

async with httpx.AsyncClient(transport=AsyncTunnelTransport(tunnel)) as client:
    page = await client.get("https://intranet/")
"""

from __future__ import annotations

from wyrmhole.adapters import http_core
from wyrmhole.adapters.extra import needed
from wyrmhole.adapters.http_transport import AsyncTransport, BlockingTransport

with needed("httpx"):
    import httpcore
    import httpx


class _AsyncBody(http_core.AsyncBody, httpx.AsyncByteStream):
    pass


class _Body(http_core.BlockingBody, httpx.SyncByteStream):
    pass


class AsyncTunnelTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=...)`."""

    client = httpx
    core = httpcore
    body = _AsyncBody


class TunnelTransport(BlockingTransport, httpx.BaseTransport):
    """For `httpx.Client(transport=...)`, with a tunnel of `wyrmhole.sync.open`."""

    client = httpx
    core = httpcore
    body = _Body
