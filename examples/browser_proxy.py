"""Run a proxy for a browser: programs that use it reach the private network by name, and others are unaffected.

usage: python examples/browser_proxy.py wg0.conf [HOST:PORT]
       chromium --proxy-server=socks5://127.0.0.1:1080
       curl --proxy socks5h://127.0.0.1:1080 http://intranet/
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import wyrmhole


async def main(config: str, listen: str = "127.0.0.1:1080") -> None:
    async with wyrmhole.open(config) as tunnel:
        proxy = await tunnel.proxy(listen)
        host, port = proxy.addresses[0]
        print(f"SOCKS5 and HTTP on {host}:{port}; press Ctrl-C to stop", flush=True)
        await proxy.wait_closed()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
