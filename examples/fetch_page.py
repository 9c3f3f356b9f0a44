"""Fetch a page from a private network with httpx, as an ordinary user.

usage: python examples/fetch_page.py wg0.conf http://intranet/        (pip install '.[httpx]' in a checkout)
"""

from __future__ import annotations

import asyncio
import sys

import httpx

import wyrmhole
from wyrmhole.adapters.httpx import AsyncTunnelTransport


async def main(config: str, url: str) -> None:
    async with (
        wyrmhole.open(config) as tunnel,
        httpx.AsyncClient(transport=AsyncTunnelTransport(tunnel)) as client,
    ):
        answer = await client.get(url)
        print(answer.text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
