"""The same requests through every adapter, for tests on loopback and through a real tunnel."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import anyio
import anyio.abc
import httpx
import httpx2
import requests

import wyrmhole.adapters.aiohttp
import wyrmhole.adapters.anyio
import wyrmhole.adapters.httpx
import wyrmhole.adapters.httpx2
import wyrmhole.adapters.requests

PAYLOAD = bytes(range(256)) * 400

Answers = tuple[bytes, int, bytes]
"""The body of `/`, the length of `/big`, and the echo of PAYLOAD."""


async def by_httpx(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    transport = wyrmhole.adapters.httpx.AsyncTunnelTransport(tunnel, verify=context)
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        first = await client.get(f"{url}/")
        async with client.stream("GET", f"{url}/big") as big:
            size = sum([len(part) async for part in big.aiter_raw()])
        return first.content, size, (await client.post(url, content=PAYLOAD)).content


async def by_httpx2(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    transport = wyrmhole.adapters.httpx2.AsyncTunnelTransport(tunnel, verify=context)
    async with httpx2.AsyncClient(transport=transport, timeout=20) as client:
        first = await client.get(f"{url}/")
        big = await client.get(f"{url}/big")
        return first.content, len(big.content), (await client.post(url, content=PAYLOAD)).content


async def by_aiohttp(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    connector = wyrmhole.adapters.aiohttp.TunnelConnector(tunnel, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(f"{url}/") as answer:
            first = await answer.read()
        async with session.get(f"{url}/big") as answer:
            size = len(await answer.read())
        async with session.post(url, data=PAYLOAD) as answer:
            return first, size, await answer.read()


async def by_anyio(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    parts = httpx.URL(url)
    results = []
    head = f"Host: {parts.host}\r\nConnection: close\r\n"
    post = f"POST / HTTP/1.1\r\n{head}Content-Length: {len(PAYLOAD)}\r\n\r\n".encode() + PAYLOAD
    gets = [f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in ("/", "/big")]
    for request in (*gets, post):
        if parts.scheme == "https":
            stream: Any = await wyrmhole.adapters.anyio.connect_tcp(
                tunnel, parts.host, parts.port or 443, ssl_context=context
            )
        else:
            stream = await wyrmhole.adapters.anyio.connect_tcp(tunnel, parts.host, parts.port or 80)
        await stream.send(request)
        results.append(await read_answer(stream))
        await anyio.aclose_forcefully(stream)  # http.server closes without TLS's close_notify
    return results[0], len(results[1]), results[2]


async def read_answer(stream: anyio.abc.ByteReceiveStream) -> bytes:
    """Return the body, whose length is in the head."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive()
    head, _, body = received.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < size:
        body += await stream.receive()
    return body


def by_blocking_httpx(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    transport = wyrmhole.adapters.httpx.TunnelTransport(tunnel, verify=context)
    with httpx.Client(transport=transport, timeout=20) as client:
        first, big = client.get(f"{url}/"), client.get(f"{url}/big")
        return first.content, len(big.content), client.post(url, content=PAYLOAD).content


def by_blocking_httpx2(tunnel: Any, url: str, context: ssl.SSLContext) -> Answers:
    transport = wyrmhole.adapters.httpx2.TunnelTransport(tunnel, verify=context)
    with httpx2.Client(transport=transport, timeout=20) as client:
        first, big = client.get(f"{url}/"), client.get(f"{url}/big")
        return first.content, len(big.content), client.post(url, content=PAYLOAD).content


def by_requests(tunnel: Any, url: str, context: ssl.SSLContext, authority: str | None = None) -> Answers:
    with requests.Session() as session:
        wyrmhole.adapters.requests.mount(session, tunnel)
        session.verify = authority or True
        first, big = session.get(f"{url}/", timeout=20), session.get(f"{url}/big", timeout=20)
        return first.content, len(big.content), session.post(url, data=PAYLOAD, timeout=20).content


ASYNC: list[Callable[[Any, str, ssl.SSLContext], Awaitable[Answers]]] = [by_httpx, by_httpx2, by_aiohttp, by_anyio]
BLOCKING: list[Callable[[Any, str, ssl.SSLContext], Answers]] = [by_blocking_httpx, by_blocking_httpx2]
