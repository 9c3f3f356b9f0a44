"""HTTP through the proxy: whole exchanges with real servers, errors and timeouts."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest

from tests.library.proxy.http import USERS, basic, fetch, read_body, read_head, through_proxy
from tests.support.loopback import Silent, count_then_answer, echo, eventually, run
from wyrmhole.library.proxy import http_relay
from wyrmhole.library.proxy.http_relay import is_open
from wyrmhole.library.proxy.proxy import proxy
from wyrmhole.library.services.service import Limits


def test_requests_to_one_server_share_one_connection() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, tunnel):
            for path in (b"/a", b"/chunked", b"/b"):
                line = b"GET http://web.internal:%d%b HTTP/1.1\r\nHost: x\r\nProxy-Connection: keep-alive\r\n" % (
                    port,
                    path,
                )
                first, fields, body = await fetch(reader, writer, line)
                assert first == b"HTTP/1.1 200 OK"
                assert fields[b"via"] == b"1.1 wyrmhole"
                assert body == b"GET %b HTTP/1.1|host,via|web.internal:%d|" % (path, port)
            assert tunnel.asked == ["web.internal"], "the name is resolved inside, and all requests share a connection"
            assert len(tunnel.opened) == 1

    run(scenario())


def test_request_to_another_server_opens_another_connection() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, tunnel):
            for host in (b"web.internal", b"127.0.0.1"):
                _, _, body = await fetch(reader, writer, b"GET http://%b:%d/ HTTP/1.1\r\nHost: x\r\n" % (host, port))
                assert b"|%b:%d|" % (host, port) in body
            assert [sock.fileno() >= 0 for sock in tunnel.opened] == [False, True]

    run(scenario())


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_request_body_is_forwarded_in_either_framing(size: int, chunked: bool) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            data = b"z" * size
            head = b"POST http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
            if chunked:
                head += b"Transfer-Encoding: chunked\r\n"
                framed = (b"%x\r\n%b\r\n" % (size, data) if size else b"") + b"0\r\n\r\n"
            else:
                head, framed = head + b"Content-Length: %d\r\n" % size, data
            first, _, body = await fetch(reader, writer, head, framed)
            assert first == b"HTTP/1.1 200 OK"
            assert body.rpartition(b"|")[2] == data

    run(scenario())


def test_100_continue_comes_from_the_server() -> None:
    """RFC 9110, 10.1.1."""

    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            writer.write(
                b"POST http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
                % port
            )
            assert (await read_head(reader))[0].startswith(b"HTTP/1.1 100")
            writer.write(b"abc")
            first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 OK"
            assert (await read_body(reader, fields)).endswith(b"|abc")

    run(scenario())


def test_answer_before_the_end_of_the_request_is_forwarded() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async def scenario() -> None:
        async with through_proxy(hasty) as (reader, writer, port, _):
            head = b"POST http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n" % port
            first, _, _ = await fetch(reader, writer, head, b"the beginning")
            assert first == b"HTTP/1.1 413 Too Large"
            assert await reader.read() == b"", "the connection ends, because the rest of the body would follow on it"

    run(scenario())


def test_answer_delimited_by_the_connection_is_reframed() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            line = b"GET http://web.internal:%d/until-close HTTP/1.1\r\nHost: x\r\n" % port
            for _ in range(2):
                _, fields, body = await fetch(reader, writer, line)
                assert fields[b"transfer-encoding"] == b"chunked"
                assert body.startswith(b"GET /until-close")

    run(scenario())


def test_head_has_no_body_and_keeps_the_connection() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            for method in (b"HEAD", b"GET"):
                line = b"%b http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % (method, port)
                first, fields, _ = await fetch(reader, writer, line)
                assert first == b"HTTP/1.1 200 OK"
                assert int(fields[b"content-length"]) > 0

    run(scenario())


@pytest.mark.parametrize(("path", "status"), [(b"/garbage", b"502"), (b"/nothing", b"502")], ids=["garbage", "nothing"])
def test_malformed_answer_is_a_bad_gateway(path: bytes, status: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            first, _, body = await fetch(
                reader, writer, b"GET http://web.internal:%d%b HTTP/1.1\r\nHost: x\r\n" % (port, path)
            )
            assert first.split()[1] == status
            assert b"gave no valid response" in body

    run(scenario())


def test_truncated_answer_is_truncated_for_the_client() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            writer.write(b"GET http://web.internal:%d/short HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            _, fields = await read_head(reader)
            assert fields[b"content-length"] == b"100"
            assert len(await reader.read()) == 5

    run(scenario())


@pytest.mark.parametrize(
    ("request_line", "status", "reason"),
    [
        (b"GET / HTTP/1.1", b"421", b"this is a proxy, not a server"),
        (b"GET http://gone.internal/ HTTP/1.1", b"502", b"gone.internal"),
        (b"GET http://127.0.0.1:1/ HTTP/1.1", b"502", b"Connection refused"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1", b"502", b"Connection refused"),
        (b"CONNECT gone.internal:443 HTTP/1.1", b"502", b"gone.internal"),
        (b"GARBAGE", b"400", b"not a valid HTTP"),
        (b"POST http://a.internal/ HTTP/1.1\r\nTransfer-Encoding: identity", b"501", b"not a valid HTTP"),
        (
            b"POST http://a.internal/ HTTP/1.1\r\nTransfer-Encoding: chunked, chunked",
            b"501",
            b"not a valid HTTP",
        ),
        (b"POST http://a.internal/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", b"501", b"not a valid HTTP"),
        (b"POST http://a.internal/ HTTP/1.1\r\nContent-Length : 5", b"400", b"not a valid HTTP"),
        (b"POST http://a.internal/ HTTP/1.1\r\nContent-Length: 5\rX: y", b"400", b"not a valid HTTP"),
        (b"POST http://a.internal/ HTTP/1.1\r\nContent-Length: +5", b"400", b"not a valid HTTP"),
        (b"POST http://a.internal/ HTTP/1.1\r\nContent-Length: 5, 6", b"400", b"not a valid HTTP"),
        (
            b"POST http://a.internal/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            b"400",
            b"both Content-Length and Transfer-Encoding",
        ),
        (b"POST http://a.internal/ HTTP/1.0\r\nTransfer-Encoding: chunked", b"400", b"must not have Transfer-Encoding"),
        (b"GET http://a.internal/ HTTP/1.1\r\nHost: b.internal", b"400", b"not a valid HTTP"),
        (
            b"GET http://a.internal/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
            b"400",
            b"not a valid HTTP",
        ),
        (b"GET http://a.internal/ HTTP/1.1\r\nX: " + b"y" * 70_000, b"431", b"not a valid HTTP"),
    ],
)
def test_failure_is_reported_and_ends_the_connection(request_line: bytes, status: bytes, reason: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, _, _):
            first, fields, body = await fetch(reader, writer, request_line + b"\r\nHost: x\r\n")
            assert first.split()[1] == status
            assert reason in body
            assert fields[b"connection"] == b"close"
            assert await reader.read() == b""

    run(scenario())


# Time-outs, passwords and CONNECT


def test_silent_server_is_a_gateway_timeout() -> None:
    async def scenario() -> None:
        async with await proxy(Silent(), "127.0.0.1:0", limits=Limits(connect=0.01)) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            first, _, body = await fetch(reader, writer, b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n")
            assert first.split()[1] == b"504"
            assert b"did not answer within 0.01 s; no handshake with peer far" in body
            writer.close()

    run(scenario())


def test_endless_request_is_a_request_timeout() -> None:
    async def scenario() -> None:
        async with through_proxy(limits=Limits(greeting=0.01)) as (reader, writer, _, _):
            writer.write(b"GET http://web.internal/ HTTP/1.1\r\n")
            assert (await read_head(reader))[0].split()[1] == b"408"

    run(scenario())


@pytest.mark.parametrize("credentials", [None, basic("ada", "byron"), basic("ada", "lovelace")])
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_request_without_password_gets_407_and_opens_nothing(credentials: bytes | None, method: str) -> None:
    async def scenario() -> None:
        async with through_proxy(users=USERS) as (reader, writer, port, tunnel):
            target = b"web.internal:%d" % port if method == "CONNECT" else b"http://web.internal:%d/" % port
            line = method.encode() + b" " + target + b" HTTP/1.1\r\nHost: x\r\n"
            if credentials is not None:
                line += b"Proxy-Authorization: " + credentials + b"\r\n"
            first, fields, body = await fetch(reader, writer, line)
            if credentials == basic("ada", "lovelace"):
                assert first.split()[1] == b"200"
                assert b"authorization" not in body
            else:
                assert first.split()[1] == b"407"
                assert fields[b"proxy-authenticate"].startswith(b"Basic realm=")
                assert tunnel.opened == []

    run(scenario())


def test_connect_carries_bytes_and_half_close() -> None:
    async def scenario() -> None:
        async with through_proxy(count_then_answer) as (reader, writer, port, _):
            writer.write(b"CONNECT web.internal:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
            first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 Connection established"
            assert not {b"content-length", b"transfer-encoding"} & set(fields)
            writer.write(bytes(200_000))
            writer.write_eof()
            assert await reader.read() == b"200005"

    run(scenario())


def test_connect_forwards_bytes_unchanged() -> None:
    async def scenario() -> None:
        async with through_proxy(echo) as (reader, writer, port, _):
            writer.write(b"CONNECT web.internal:%d HTTP/1.0\r\n\r\n" % port)
            await read_head(reader)
            for size in (1, 100_000):
                writer.write(b"q" * size)
                assert await reader.readexactly(size) == b"q" * size

    run(scenario())


def ended(sock: socket.socket) -> bool:
    """Return whether the socket is closed, or has received the end of the other side."""
    return sock.fileno() < 0 or not is_open(sock)


def test_connection_that_the_server_closed_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario() -> None:
        async with through_proxy(once) as (reader, writer, port, tunnel):
            for number in (1, 2):
                line = b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
                assert (await fetch(reader, writer, line))[2] == b"ok"
                assert len(tunnel.opened) == number
                await eventually(partial(ended, tunnel.opened[-1]))

    run(scenario())


def test_back_pressure_reaches_the_server() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            sent += 1 << 16
            await writer.drain()

    async def scenario() -> None:
        async with through_proxy(endless) as (_, writer, port, _):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            before, quiet = -1, 0
            while quiet < 200:
                before, quiet = sent, quiet + 1 if sent == before and sent else 0
                await asyncio.sleep(0)
            assert sent < 64_000_000

    run(scenario())


# Clients that disconnect while a server is silent


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read, and answer only after the end of the other side."""
    await reader.read()
    raise ConnectionAbortedError


def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (b"Content-Length: 1000\r\n\r\nabc", asyncio.StreamWriter.close),
        (b"Content-Length: 1000\r\n\r\nabc", asyncio.StreamWriter.write_eof),
        (b"Content-Length: 3\r\n\r\nabc", reset),
        (b"Transfer-Encoding: chunked\r\n\r\nno number\r\n", lambda writer: None),
    ],
    ids=["closed in a body", "half-closed in a body", "reset", "an invalid body"],
)
def test_connection_to_a_silent_server_ends_with_the_client(
    body: bytes, end: Callable[[asyncio.StreamWriter], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_relay, "CLIENT_CHECK_SECONDS", 0)

    async def scenario() -> None:
        async with through_proxy(silent) as (_, writer, port, tunnel):
            writer.write(b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n" % port + body)
            await eventually(lambda: tunnel.still_open == 1)
            end(writer)
            await eventually(lambda: tunnel.still_open == 0)

    run(scenario())


def test_client_that_half_closed_is_still_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relay, "CLIENT_CHECK_SECONDS", 0)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        for _ in range(100):  # many checks of the client
            await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async def scenario() -> None:
        async with through_proxy(slow) as (reader, writer, port, _):
            writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            writer.write_eof()
            assert (await reader.read()).endswith(b"hi")

    run(scenario())
