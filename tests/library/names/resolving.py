"""A resolver that queries a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from tests.library.names.name_server import NameServer, Records, name_server
from tests.support.loopback import Loopback
from wyrmhole.library.names.resolver import Resolver

T = TypeVar("T")


RECORDS: Records = {
    ("db.internal", "A"): ["10.0.0.1", "10.0.0.2"],
    ("db.internal", "AAAA"): ["fd00::1", "fd00::2", "fd00::3"],
    ("four.internal", "A"): ["10.0.0.4"],
    ("alias.internal", "CNAME"): ["four.internal."],
    ("printer.office.internal", "A"): ["10.1.0.1"],
    ("_sip._tcp.internal", "SRV"): ["20 0 5061 second.internal.", "10 0 5060 first.internal."],
    ("_none._tcp.internal", "SRV"): ["0 0 0 ."],
}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def resolving(
    *, ttl: int = 60, search: Sequence[str] = (), ndots: int = 1, host: str = "127.0.0.1", lifetime: float = 5.0
) -> AsyncIterator[tuple[Resolver, NameServer, Loopback, Clock]]:
    tunnel, clock = Loopback(), Clock()
    async with name_server(RECORDS, ttl, host) as (server, port):
        resolver = Resolver(
            [host],
            tunnel.open_socket,
            search=search,
            ndots=ndots,
            port=port,
            clock=clock,
            attempt=1.0,
            lifetime=lifetime,
        )
        yield resolver, server, tunnel, clock
    assert tunnel.still_open == 0, "the sockets of all questions are closed"


async def texts(resolver: Resolver, name: str, family: int = 0) -> list[str]:
    return [str(address) for address in await resolver.addresses(name, family=family)]


async def took(work: Awaitable[T]) -> tuple[T, float]:
    """Return the result of the work, and its duration in seconds."""
    start = asyncio.get_running_loop().time()
    return await work, asyncio.get_running_loop().time() - start
