"""Programs that `site.py` starts on hosts of a test: `python -m tests.library.programs NAME WORDS`.

Each prints one line of JSON when it is ready, answers each input line with one line, and ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import wyrmhole
import wyrmhole.sync
from tests.adapters import clients
from tests.adapters.web_server import WebServer
from tests.library.names.name_server import NameServer, Records
from tests.support.loopback import Echo

INSIDE: Records = {
    (f"{name}.internal", kind): [address]
    for name in ("web", "db")
    for kind, address in (("A", "10.77.0.2"), ("AAAA", "fd77::2"))
}


async def converse(hello: object, answer: Callable[..., Awaitable[object]] | None = None) -> None:
    """Print the greeting, then answer lines until the input ends."""
    print(json.dumps(hello), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        assert answer is not None
        print(json.dumps(await answer(*json.loads(line))), flush=True)


async def serve_names(stack: AsyncExitStack, host: str, records: Records) -> NameServer:
    server = NameServer(records)
    tcp = await asyncio.start_server(server.by_tcp, host, 53)
    stack.callback(tcp.close)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, (host, 53))
    stack.callback(transport.close)
    return server


async def inside(certificate: str) -> None:
    """The private network."""
    async with AsyncExitStack() as stack:
        names = await serve_names(stack, "10.77.0.2", INSIDE)
        for host in ("10.77.0.2", "fd77::2"):
            for port, pem in ((80, None), (443, certificate)):
                server = WebServer(host, port, pem)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
                threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Echo, (host, 7))
            stack.callback(transport.close)
        await converse("ready", lambda _: answered(names.asked))


async def outside() -> None:
    """The resolver of the host, which should receive no question."""
    async with AsyncExitStack() as stack:
        names = await serve_names(stack, "127.0.0.53", {})
        await converse("ready", lambda _: answered(names.asked))


async def answered(asked: list[tuple[str, str, str]]) -> object:
    """Return an answer with the questions since the last call."""
    found = [name for _, name, _ in asked]
    asked.clear()
    return found


async def proxy(config: str, *users: str) -> None:
    """Run a proxy, and report its port."""
    async with wyrmhole.open(config) as tunnel:
        running = await tunnel.proxy("127.0.0.1:0", users=dict(user.split(":") for user in users) or None)
        await converse(running.addresses[0][1])


async def fetch(config: str, authority: str) -> None:
    """Fetch a URL with a given adapter, on request."""
    context = ssl.create_default_context(cafile=authority)
    async with wyrmhole.open(config) as tunnel:

        async def answer(name: str, url: str) -> object:
            first, size, back = await getattr(clients, name)(tunnel, url, context)
            return [first.decode(), size, back == clients.PAYLOAD]

        await converse("ready", answer)


def fetch_blocking(config: str, authority: str) -> None:
    """Fetch a URL with a given blocking adapter, on request."""
    context = ssl.create_default_context(cafile=authority)
    with wyrmhole.sync.open(config) as tunnel:
        print(json.dumps("ready"), flush=True)
        while line := sys.stdin.readline():
            name, url = json.loads(line)
            more = [authority] if name == "by_requests" else []
            first, size, back = getattr(clients, name)(tunnel, url, context, *more)
            print(json.dumps([first.decode(), size, back == clients.PAYLOAD]), flush=True)


async def carry(config: str) -> None:
    """Run forwards, and expose a web server of this host inside. Report all ports."""
    async with wyrmhole.open(config) as tunnel:
        web = await tunnel.forward("127.0.0.1:0", "web.internal:80")
        udp = await tunnel.forward("127.0.0.1:0/udp", "[fd77::2]:7")
        here = WebServer("127.0.0.1", 0, None)
        threading.Thread(target=here.serve_forever, args=(0.01,), daemon=True).start()
        await tunnel.expose(":80", f"127.0.0.1:{here.server_address[1]}")
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, ("127.0.0.1", 0))
        await tunnel.expose(":7/udp", f"127.0.0.1:{transport.get_extra_info('sockname')[1]}")
        try:
            await converse([web.addresses[0][1], udp.addresses[0][1]])
        finally:
            transport.close()
            here.shutdown()
            here.server_close()


async def run(config: str, authority: str, file: str) -> None:
    """Run a block of a document, which can use `tunnel`, `config` and `context`."""
    context = ssl.create_default_context(cafile=authority)
    async with wyrmhole.open(config) as tunnel:
        body = textwrap.indent(Path(file).read_text(), "    ")
        names: dict[str, Any] = {"tunnel": tunnel, "config": config, "context": context, "asyncio": asyncio}
        with contextlib.redirect_stdout(sys.stderr):
            exec(f"async def block():\n{body}", names)
            await names["block"]()
    await converse("done")


def run_blocking(config: str, authority: str, file: str) -> None:
    """Run a block of a document that opens its own blocking tunnel."""
    exec(Path(file).read_text(), {"config": config})
    print(json.dumps("done"), flush=True)


PROGRAMS: dict[str, Any] = {
    program.__name__: program for program in (inside, outside, proxy, fetch, fetch_blocking, carry, run, run_blocking)
}

if __name__ == "__main__":
    made = PROGRAMS[sys.argv[1]](*sys.argv[2:])
    if made is not None:
        asyncio.run(made)
