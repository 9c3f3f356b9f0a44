"""Serve a page to the peers of a tunnel, on port 80, as an ordinary user.

usage: python examples/serve_inside.py wg0.conf
"""

from __future__ import annotations

import asyncio
import sys

import wyrmhole


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f"hello, {writer.get_extra_info('peername')[0]}\n".encode()
    writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    writer.close()


async def main(config: str) -> None:
    async with wyrmhole.open(config) as tunnel, await tunnel.start_server(answer, port=80) as server:
        own = ", ".join(str(address.ip) for address in tunnel.addresses)
        print(
            f"Serving inside on {own}, port 80; peers reach the tunnel at UDP port {tunnel.stats().listen_port}.",
            flush=True,
        )
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
