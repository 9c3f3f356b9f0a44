"""Ambiguous messages, slightly malformed messages, and upgrades."""

from __future__ import annotations

import asyncio

import pytest

from tests.library.proxy.http import fetch, read_body, read_head, through_proxy
from tests.support.loopback import echo, eventually, run

HEADS = {
    b"/two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"/identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi",
    b"/name": b"HTTP/1.1 200 OK\r\nServer Name: x\r\n continued\r\nContent-Length: 2\r\nno colon\r\n\r\nhi",
    b"/blank": b"HTTP/1.1 200 OK\r\nX-One : 1\r\nContent-Length : 2\r\n\r\nhi",
    b"/control": b"HTTP/1.1 200 OK\r\nX-One: a\0b\rc\r\nContent-Length: 2\r\n\r\nhi",
    b"/fold": b"HTTP/1.1 200 OK\r\nX-One: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
    b"/lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    b"/early": b"HTTP/1.1 103 Early\r\nA B: c\r\n\r\nHTTP/1.1 200 OK\r\nA B: c\r\nContent-Length: 2\r\n\r\nhi",
    b"/same": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
}


async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the answer that the path selects. A second request on the connection is never read."""
    first, _ = await read_head(reader)
    writer.write(HEADS[first.split()[1]])
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize("path", list(HEADS))
def test_slightly_malformed_answer_is_corrected(path: bytes) -> None:
    """RFC 9112, 5.1, 5.2 and 6.3; RFC 9110, 5.5."""

    async def scenario() -> None:
        async with through_proxy(odd) as (reader, writer, port, tunnel):
            writer.write(b"GET http://web.internal:%d%b HTTP/1.1\r\nHost: x\r\n\r\n" % (port, path))
            first, fields = await read_head(reader)
            if path == b"/early":
                assert first.split()[1] == b"103"
                first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 OK"
            assert not {b"content-length", b"transfer-encoding"} <= set(fields)
            assert all(b" " not in name for name in fields)
            assert await read_body(reader, fields) == b"hi"
            if path == b"/two-lengths":
                await eventually(lambda: tunnel.still_open == 0)

    run(scenario())


def test_http_1_0_client_gets_no_interim_answer() -> None:
    """RFC 9110, 15.2."""

    async def scenario() -> None:
        async with through_proxy(odd) as (reader, writer, port, _):
            writer.write(b"GET http://web.internal:%d/early HTTP/1.0\r\n\r\n" % port)
            assert (await read_head(reader))[0] == b"HTTP/1.1 200 OK"

    run(scenario())


def test_answer_with_two_different_lengths_is_a_bad_gateway() -> None:
    async def scenario(lengths: bytes) -> None:
        async def differing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n" + lengths + b"\r\n\r\nhi")
            await reader.read()

        async with through_proxy(differing) as (reader, writer, port, _):
            first, _, _ = await fetch(reader, writer, b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port)
            assert first.split()[1] == b"502"

    run(scenario(b"Content-Length: 2\r\nContent-Length: 3"))
    run(scenario(b"Transfer-Encoding: chunked, chunked"))
    run(scenario(b"Content-Length: 2\0"))


@pytest.mark.parametrize(
    "request_line",
    [
        b"get http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://web.internal:%d/ HTTP/1.1\r\n\r\n",
        b"GET HTTP://user:secret@web.internal:%d/ HTTP/1.1\r\n\r\n",
        b"\r\n\r\nGET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://web.internal:%d/ HTTP/1.0\r\n\r\n",
        b"GET http://web.internal:%d/ HTTP/1.1\nHost: x\n\n",
        b"GET http://web.internal.:%d/#there HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_slightly_malformed_request_is_served(request_line: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, tunnel):
            tunnel.names["web.internal."] = "127.0.0.1"
            writer.write(request_line % port)
            first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 OK"
            assert (await read_body(reader, fields)).startswith(b"GET / HTTP/1.1|host")

    run(scenario())


def test_lower_case_connect_without_host_is_served() -> None:
    async def scenario() -> None:
        async with through_proxy(echo) as (reader, writer, port, _):
            writer.write(b"connect web.internal:%d HTTP/1.1\r\n\r\nearly" % port)
            assert (await read_head(reader))[0].split()[1] == b"200"
            assert await reader.readexactly(5) == b"early"

    run(scenario())


def test_pipelined_requests_are_all_corrected() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            writer.write(b"get http://web.internal:%d/ HTTP/1.1\r\n\r\n" % port * 5)
            for _ in range(5):
                first, fields = await read_head(reader)
                assert first == b"HTTP/1.1 200 OK"
                await read_body(reader, fields)

    run(scenario())


WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Key: k\r\n"


async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _, fields = await read_head(reader)
    if fields.get(b"upgrade", b"").lower() != b"websocket" or fields[b"connection"] != b"Upgrade":
        writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        return
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: a\r\n\r\nfirst"
    )
    await echo(reader, writer)


def test_websocket_upgrade_works_without_connect() -> None:
    async def scenario() -> None:
        async with through_proxy(websocket) as (reader, writer, port, _):
            head = b"GET ws://web.internal:%d/chat HTTP/1.1\r\nHost: x\r\n" % port
            writer.write(head + WEBSOCKET % b"WebSocket" + b"\r\nearly")
            first, fields = await read_head(reader)
            assert first.split()[1] == b"101"
            assert (fields[b"upgrade"], fields[b"connection"]) == (b"websocket", b"Upgrade")
            assert fields[b"sec-websocket-accept"] == b"a"
            assert await reader.readexactly(10) == b"firstearly"
            writer.write(bytes(100_000))
            assert await reader.readexactly(100_000) == bytes(100_000)

    run(scenario())


def test_refused_and_unsupported_upgrades() -> None:
    async def scenario() -> None:
        async with through_proxy(websocket) as (reader, writer, port, _):
            head = b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
            first, _, _ = await fetch(reader, writer, head + WEBSOCKET % b"h2c")
            assert first.split()[1] == b"426", "h2c is not forwarded"
        async with through_proxy() as (reader, writer, port, _):
            head = b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
            for _ in range(2):
                first, _, body = await fetch(reader, writer, head + WEBSOCKET % b"websocket")
                assert first.split()[1] == b"200" and b"upgrade" in body

    run(scenario())
