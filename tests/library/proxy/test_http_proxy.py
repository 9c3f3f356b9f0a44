"""HTTP through the proxy: rules for requests, then whole exchanges with real servers."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.loopback import Loopback, Serve, Silent, count_then_say, echo, eventually, run, server
from wyrmhole.library.proxy import http_relay
from wyrmhole.library.proxy.http_head import clean_request, clean_response, take_head
from wyrmhole.library.proxy.http_proxy import (
    FRAMING,
    HttpError,
    Target,
    authorized,
    end_to_end,
    request_headers,
    response_headers,
    target_of,
)
from wyrmhole.library.proxy.http_relay import is_open
from wyrmhole.library.proxy.proxy import proxy
from wyrmhole.library.services.service import Limits

USERS = {"ada": "lovelace"}


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


# The rules


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        (b"CONNECT", b"db.internal:443", Target("db.internal", 443, b"db.internal:443", None)),
        (b"CONNECT", b"[fd00::1]:443", Target("fd00::1", 443, b"[fd00::1]:443", None)),
        (b"GET", b"http://a.internal/x?y=1", Target("a.internal", 80, b"a.internal", b"/x?y=1")),
        (b"GET", b"http://a.internal:8080", Target("a.internal", 8080, b"a.internal:8080", b"/")),
        (b"GET", b"HTTP://user:secret@A.internal/", Target("a.internal", 80, b"A.internal", b"/")),
        (b"GET", b"http://[fd00::1]:81/", Target("fd00::1", 81, b"[fd00::1]:81", b"/")),
        (b"GET", b"http://a.internal/?", Target("a.internal", 80, b"a.internal", b"/?")),
        (b"GET", b"ws://a.internal/chat", Target("a.internal", 80, b"a.internal", b"/chat")),
        (b"CONNECT", b"a.internal", Target("a.internal", 443, b"a.internal:443", None)),
        (b"CONNECT", b"a.internal.:443", Target("a.internal.", 443, b"a.internal.:443", None)),
        (b"CONNECT", b"[fd00::1]", Target("fd00::1", 443, b"[fd00::1]:443", None)),
    ],
)
def test_the_target_is_read_as_the_rfc_says(method: bytes, target: bytes, expected: Target) -> None:
    """RFC 9112, 3.2.2 and 3.2.3."""
    assert target_of(method, target) == expected


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/index.html", 421),
        (b"OPTIONS", b"*", 421),
        (b"GET", b"ftp://a.internal/", 501),
        (b"GET", b"https://a.internal/", 501),
        (b"GET", b"http:///x", 400),
        (b"GET", b"http://[fd00::1/", 400),
        (b"GET", b"http://a:99999/", 400),
        (b"GET", b"\xff\xfe", 501),
        (b"CONNECT", b"fd00::1", 400),
        (b"CONNECT", b":443", 400),
        (b"CONNECT", b"a.internal:0", 400),
        (b"CONNECT", b"a.internal:53/udp", 400),
        (b"CONNECT", b"http://a.internal:443/", 400),
    ],
)
def test_what_cannot_be_fetched_has_its_status(method: bytes, target: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        target_of(method, target)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("value", "let_in"),
    [
        (basic("ada", "lovelace"), True),
        (b"basic " + basic("ada", "lovelace")[6:], True),
        (basic("ada", "byron"), False),
        (basic("eve", "lovelace"), False),
        (b"Basic ???", False),
        (b"Basic " + base64.b64encode(b"ada"), False),
        (b"Bearer " + basic("ada", "lovelace")[6:], False),
        (b"", False),
    ],
)
def test_only_the_right_password_lets_in(value: bytes, let_in: bool) -> None:
    """RFC 7617."""
    assert authorized([(b"proxy-authorization", value)], USERS) is let_in
    assert authorized([(b"proxy-authorization", value)], None)
    assert not authorized([], USERS)


def test_fields_of_one_hop_stay_here_and_framing_is_never_lost() -> None:
    """RFC 9110, 7.6.1; a Connection that names Content-Length must not remove it."""
    fields = [
        (b"Connection", b"close, X-Hop, Content-Length, Host"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"secret"),
        (b"Upgrade", b"h2c"),
        (b"TE", b"trailers"),
        (b"Content-Length", b"3"),
        (b"X-End", b"2"),
    ]
    assert end_to_end(fields) == [(b"content-length", b"3"), (b"x-end", b"2")]


def test_host_is_that_of_the_address_and_via_names_us() -> None:
    """RFC 9112, 3.2.2; RFC 9110, 7.6.3."""
    target = Target("a.internal", 80, b"a.internal", b"/")
    fields = request_headers([(b"Host", b"evil.internal"), (b"Accept", b"*/*")], target, b"1.1")
    assert fields == [(b"host", b"a.internal"), (b"accept", b"*/*"), (b"via", b"1.1 wyrmhole")]
    assert response_headers([(b"Transfer-Encoding", b"chunked")], b"1.0") == [(b"via", b"1.0 wyrmhole")]


# Exchanges


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes]]:
    """First line and fields of a message."""
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
    """Says what it was asked: first line, fields and body; in the form that the path wants."""
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
    """A client's streams to a proxy, the port of a server inside, and the tunnel."""
    tunnel = Loopback(web_internal="127.0.0.1")
    async with server(serve) as port, await proxy(tunnel, "127.0.0.1:0", users=users, limits=limits) as running:
        reader, writer = await asyncio.open_connection(*running.addresses[0])
        yield reader, writer, port, tunnel
        writer.close()
    assert tunnel.still_open == 0


async def fetch(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, body: bytes = b""
) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, fields and body of the answer."""
    writer.write(request + b"\r\n" + body)
    first, fields = await read_head(reader)
    return first, fields, b"" if request.startswith(b"HEAD ") else await read_body(reader, fields)


def test_requests_follow_each_other_on_one_connection_to_one_server() -> None:
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
            assert tunnel.asked == ["web.internal"], "resolved inside, and one connection for all"
            assert len(tunnel.opened) == 1

    run(scenario())


def test_another_server_gets_another_connection() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, tunnel):
            for host in (b"web.internal", b"127.0.0.1"):
                _, _, body = await fetch(reader, writer, b"GET http://%b:%d/ HTTP/1.1\r\nHost: x\r\n" % (host, port))
                assert b"|%b:%d|" % (host, port) in body
            assert [sock.fileno() >= 0 for sock in tunnel.opened] == [False, True]

    run(scenario())


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_goes_up_in_either_framing(size: int, chunked: bool) -> None:
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


def test_a_client_that_waits_for_100_gets_it_from_the_server() -> None:
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


def test_an_answer_that_comes_before_the_request_is_complete_is_passed_on() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async def scenario() -> None:
        async with through_proxy(hasty) as (reader, writer, port, _):
            head = b"POST http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n" % port
            first, _, _ = await fetch(reader, writer, head, b"the beginning")
            assert first == b"HTTP/1.1 413 Too Large"
            assert await reader.read() == b"", "the connection ends: what follows on it is the rest of the body"

    run(scenario())


def test_an_answer_that_ends_with_its_connection_is_framed_anew() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            line = b"GET http://web.internal:%d/until-close HTTP/1.1\r\nHost: x\r\n" % port
            for _ in range(2):
                _, fields, body = await fetch(reader, writer, line)
                assert fields[b"transfer-encoding"] == b"chunked"
                assert body.startswith(b"GET /until-close")

    run(scenario())


def test_head_has_no_body_and_the_connection_goes_on() -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            for method in (b"HEAD", b"GET"):
                line = b"%b http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % (method, port)
                first, fields, _ = await fetch(reader, writer, line)
                assert first == b"HTTP/1.1 200 OK"
                assert int(fields[b"content-length"]) > 0

    run(scenario())


@pytest.mark.parametrize(("path", "status"), [(b"/garbage", b"502"), (b"/nothing", b"502")], ids=["garbage", "nothing"])
def test_a_server_that_makes_no_sense_is_a_bad_gateway(path: bytes, status: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, _):
            first, _, body = await fetch(
                reader, writer, b"GET http://web.internal:%d%b HTTP/1.1\r\nHost: x\r\n" % (port, path)
            )
            assert first.split()[1] == status
            assert b"gave no valid response" in body

    run(scenario())


def test_an_answer_cut_short_is_cut_short_for_the_client_too() -> None:
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
def test_why_it_failed_is_told_and_the_connection_ends(request_line: bytes, status: bytes, reason: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, _, _):
            first, fields, body = await fetch(reader, writer, request_line + b"\r\nHost: x\r\n")
            assert first.split()[1] == status
            assert reason in body
            assert fields[b"connection"] == b"close"
            assert await reader.read() == b""

    run(scenario())


# Messages that others read in another way, and messages that are a little wrong


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
    """Answers as the path says; a second request on the connection is never read."""
    first, _ = await read_head(reader)
    writer.write(HEADS[first.split()[1]])
    await writer.drain()
    await reader.read()


FIELDS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"Content-Length: 2", b"Transfer-Encoding: chunked", b"X : y", b"A B: c", b" folded", b"X: a\0b"]
        ),
        st.binary(max_size=20),
    ),
    max_size=6,
)


@given(lines=FIELDS)
def test_any_head_is_put_right_once_and_keeps_what_frames_it(lines: list[bytes]) -> None:
    data = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b"body"])
    taken = take_head(data)
    assert taken is not None and taken[0] + taken[1] == data
    assert take_head(taken[0].rstrip(b"\r\n")) is None
    head, left_out = clean_response(taken[0])
    assert clean_response(head) == (head, []) and take_head(head) == (head, b"")
    names = {line.partition(b":")[0].rstrip(b" \t").lower() for line in left_out if b":" in line}
    assert names & FRAMING <= {b"transfer-encoding"}, "of which only `identity` is left out"
    assert clean_request(clean_request(data)) == clean_request(data)


@pytest.mark.parametrize("path", list(HEADS))
def test_an_answer_that_is_a_little_wrong_is_passed_on_right(path: bytes) -> None:
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


def test_a_client_of_http_1_0_gets_no_interim_answer() -> None:
    """RFC 9110, 15.2."""

    async def scenario() -> None:
        async with through_proxy(odd) as (reader, writer, port, _):
            writer.write(b"GET http://web.internal:%d/early HTTP/1.0\r\n\r\n" % port)
            assert (await read_head(reader))[0] == b"HTTP/1.1 200 OK"

    run(scenario())


def test_an_answer_with_two_different_lengths_is_a_bad_gateway() -> None:
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
def test_a_request_that_is_a_little_wrong_is_served(request_line: bytes) -> None:
    async def scenario() -> None:
        async with through_proxy() as (reader, writer, port, tunnel):
            tunnel.names["web.internal."] = "127.0.0.1"
            writer.write(request_line % port)
            first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 OK"
            assert (await read_body(reader, fields)).startswith(b"GET / HTTP/1.1|host")

    run(scenario())


def test_connect_in_small_letters_and_without_host_is_served() -> None:
    async def scenario() -> None:
        async with through_proxy(echo) as (reader, writer, port, _):
            writer.write(b"connect web.internal:%d HTTP/1.1\r\n\r\nearly" % port)
            assert (await read_head(reader))[0].split()[1] == b"200"
            assert await reader.readexactly(5) == b"early"

    run(scenario())


def test_pipelined_requests_are_all_put_right() -> None:
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


def test_a_websocket_is_asked_for_without_connect() -> None:
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


def test_a_websocket_that_is_not_granted_and_other_upgrades() -> None:
    async def scenario() -> None:
        async with through_proxy(websocket) as (reader, writer, port, _):
            head = b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
            first, _, _ = await fetch(reader, writer, head + WEBSOCKET % b"h2c")
            assert first.split()[1] == b"426", "h2c is not passed on"
        async with through_proxy() as (reader, writer, port, _):
            head = b"GET http://web.internal:%d/ HTTP/1.1\r\nHost: x\r\n" % port
            for _ in range(2):
                first, _, body = await fetch(reader, writer, head + WEBSOCKET % b"websocket")
                assert first.split()[1] == b"200" and b"upgrade" in body

    run(scenario())


def test_a_server_that_does_not_answer_is_a_gateway_timeout() -> None:
    async def scenario() -> None:
        async with await proxy(Silent(), "127.0.0.1:0", limits=Limits(connect=0.01)) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            first, _, body = await fetch(reader, writer, b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n")
            assert first.split()[1] == b"504"
            assert b"did not answer within 0.01 s; no handshake with peer far" in body
            writer.close()

    run(scenario())


def test_a_request_that_never_ends_times_out_with_a_word() -> None:
    async def scenario() -> None:
        async with through_proxy(limits=Limits(greeting=0.01)) as (reader, writer, _, _):
            writer.write(b"GET http://web.internal/ HTTP/1.1\r\n")
            assert (await read_head(reader))[0].split()[1] == b"408"

    run(scenario())


@pytest.mark.parametrize("credentials", [None, basic("ada", "byron"), basic("ada", "lovelace")])
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_who_has_no_password_gets_407_and_nothing_is_opened(credentials: bytes | None, method: str) -> None:
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
        async with through_proxy(count_then_say) as (reader, writer, port, _):
            writer.write(b"CONNECT web.internal:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
            first, fields = await read_head(reader)
            assert first == b"HTTP/1.1 200 Connection established"
            assert not {b"content-length", b"transfer-encoding"} & set(fields)
            writer.write(bytes(200_000))
            writer.write_eof()
            assert await reader.read() == b"200005"

    run(scenario())


def test_connect_gives_back_what_it_is_given() -> None:
    async def scenario() -> None:
        async with through_proxy(echo) as (reader, writer, port, _):
            writer.write(b"CONNECT web.internal:%d HTTP/1.0\r\n\r\n" % port)
            await read_head(reader)
            for size in (1, 100_000):
                writer.write(b"q" * size)
                assert await reader.readexactly(size) == b"q" * size

    run(scenario())


def ended(sock: socket.socket) -> bool:
    """Whether the end of the other side has arrived there, or the socket is closed already."""
    return sock.fileno() < 0 or not is_open(sock)


def test_a_kept_connection_that_the_server_ended_is_made_anew() -> None:
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


def test_back_pressure_reaches_a_server_whose_answer_is_not_read() -> None:
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


# Clients that are gone while a server says nothing


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads, and answers when the other side ended."""
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
    ids=["closed in a body", "half-closed in a body", "reset", "a body that is none"],
)
def test_a_silent_server_is_not_waited_for_when_the_client_is_gone(
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


def test_a_client_that_ended_its_direction_is_answered_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relay, "CLIENT_CHECK_SECONDS", 0)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        for _ in range(100):  # many looks
            await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async def scenario() -> None:
        async with through_proxy(slow) as (reader, writer, port, _):
            writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            writer.write_eof()
            assert (await reader.read()).endswith(b"hi")

    run(scenario())
