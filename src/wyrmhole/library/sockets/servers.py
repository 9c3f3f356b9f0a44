"""A server with several listeners. Each is an ordinary asyncio server of the running loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from wyrmhole.library.common.explain import host_port
from wyrmhole.library.stacks.stack import Socket


class TunnelServer(asyncio.AbstractServer):
    """Like asyncio.Server: `sockets`, `close`, `wait_closed`, `serve_forever`, `async with`. Ends with its tunnel."""

    def __init__(self, servers: Sequence[asyncio.Server], loop: asyncio.AbstractEventLoop) -> None:
        self._servers = servers
        self._loop = loop
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        addresses = ", ".join(host_port(*sock.getsockname()[:2]) for sock in self.sockets)
        return f"<TunnelServer on {addresses}>" if addresses else "<TunnelServer, closed>"

    @property
    def sockets(self) -> tuple[Socket, ...]:
        return tuple(sock for server in self._servers for sock in server.sockets)

    def close(self) -> None:
        """Stop accepting connections. Open ones continue."""
        self._closed.set()
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return any(server.is_serving() for server in self._servers)

    async def start_serving(self) -> None:
        for server in self._servers:
            await server.start_serving()

    async def serve_forever(self) -> None:
        """Serve until `close`. Cancellation closes the server."""
        await self.start_serving()
        try:
            await self._closed.wait()
        finally:
            self.close()
