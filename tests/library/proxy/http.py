"""A web server, a proxy in front of it, and a minimal HTTP client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from tests.support.loopback import Loopback, Serve, server
from wyrmhole.library.proxy.proxy import proxy
from wyrmhole.library.services.service import Limits

USERS = {"ada": "lovelace"}


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes]]:
    """Read the first line and the fields of a message."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def read_body(reader: asyncio.StreamReader, fields: Mapping[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding") == b"chunked":
        return await read_chunked(reader)
    return await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return the first line, fields and body of the request, framed as the path demands."""
    while True:
        first, fields = await read_head(reader)
        _, path, _ = first.split(b" ")
        if fields.get(b"expect") == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = first + b"|" + b",".join(sorted(fields)) + b"|" + fields[b"host"] + b"|"
        body += await read_body(reader, fields)
        if path == b"/chunked":
            chunk = b"%x\r\n%b\r\n" % (len(body), body)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n")
        elif path == b"/until-close":
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
            return
        elif path == b"/garbage":
            writer.write(b"EHLO\r\n\r\n")
            return
        elif path == b"/nothing":
            return
        elif path == b"/short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            return
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(b"" if first.startswith(b"HEAD ") else body)


@asynccontextmanager
async def through_proxy(
    serve: Serve = web, users: Mapping[str, str] | None = None, limits: Limits | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, int, Loopback]]:
    """Yield a client's streams to a proxy, the port of a server inside, and the tunnel."""
    tunnel = Loopback(web_internal="127.0.0.1")
    async with server(serve) as port, await proxy(tunnel, "127.0.0.1:0", users=users, limits=limits) as running:
        reader, writer = await asyncio.open_connection(*running.addresses[0])
        yield reader, writer, port, tunnel
        writer.close()
    assert tunnel.still_open == 0


async def fetch(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, body: bytes = b""
) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send a request, and return status line, fields and body of the answer."""
    writer.write(request + b"\r\n" + body)
    first, fields = await read_head(reader)
    return first, fields, b"" if request.startswith(b"HEAD ") else await read_body(reader, fields)
