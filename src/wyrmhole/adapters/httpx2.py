"""httpx2 through a tunnel.

async with httpx2.AsyncClient(transport=AsyncTunnelTransport(tunnel)) as client:
    page = await client.get("https://intranet/")
"""

from __future__ import annotations

from wyrmhole.adapters import http_core
from wyrmhole.adapters.extra import needed
from wyrmhole.adapters.http_transport import AsyncTransport, BlockingTransport

with needed("httpx2"):
    import httpcore2
    import httpx2


class _AsyncBody(http_core.AsyncBody, httpx2.AsyncByteStream):
    pass


class _Body(http_core.BlockingBody, httpx2.SyncByteStream):
    pass


class AsyncTunnelTransport(AsyncTransport, httpx2.AsyncBaseTransport):
    """For `httpx2.AsyncClient(transport=...)`."""

    client = httpx2
    core = httpcore2
    body = _AsyncBody


class TunnelTransport(BlockingTransport, httpx2.BaseTransport):
    """For `httpx2.Client(transport=...)`, with a tunnel of `wyrmhole.sync.open`."""

    client = httpx2
    core = httpcore2
    body = _Body
