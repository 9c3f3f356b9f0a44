"""A server on several listeners, each an ordinary asyncio server of whatever loop is running."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from wyrmhole.library.common.explain import spot
from wyrmhole.library.stacks.stack import Socket


class TunnelServer(asyncio.AbstractServer):
    """As asyncio.Server: `sockets`, `close`, `wait_closed`, `serve_forever`, `async with`. Ends with its tunnel."""

    def __init__(self, servers: Sequence[asyncio.Server], loop: asyncio.AbstractEventLoop) -> None:
        self._servers = servers
        self._loop = loop
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        where = ", ".join(spot(*sock.getsockname()[:2]) for sock in self.sockets)
        return f"<TunnelServer on {where}>" if where else "<TunnelServer, closed>"

    @property
    def sockets(self) -> tuple[Socket, ...]:
        return tuple(sock for server in self._servers for sock in server.sockets)

    def close(self) -> None:
        """Accept no more. Connections go on."""
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
        """Until `close`, or until cancelled, which closes it."""
        await self.start_serving()
        try:
            await self._closed.wait()
        finally:
            self.close()
