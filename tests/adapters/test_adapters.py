"""Each adapter with a real server on loopback: HTTP and HTTPS, IPv4, IPv6 and a name, and the errors it raises."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import aiohttp
import anyio
import httpx
import httpx2
import pytest
import requests

import wyrmhole.adapters.aiohttp
import wyrmhole.adapters.anyio
import wyrmhole.adapters.httpx
import wyrmhole.adapters.httpx2
import wyrmhole.adapters.requests
from tests.adapters.clients import ASYNC, BLOCKING, PAYLOAD, by_anyio, by_requests
from tests.adapters.conftest import Trust
from tests.adapters.web_server import BIG, web_server
from tests.support.loopback import Loopback, run, server

INNER = {"v4": "127.0.0.1", "v6": "::1", "name": "web.internal"}


class Inside(Loopback):
    """A loopback with the methods that blocking libraries and aiohttp call, too."""

    def __init__(self) -> None:
        super().__init__(web_internal="127.0.0.1")

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        if address[0] not in {*self.names, "127.0.0.1", "::1"}:
            raise socket.gaierror(socket.EAI_NONAME, f"no {address[0]}")
        sock = socket.create_connection((self.names.get(address[0], address[0]), address[1]), timeout)
        self.opened.append(sock)
        return sock

    def socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(family, type)
        sock.setblocking(False)
        self.opened.append(sock)
        return sock


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(INNER))
def url(request: pytest.FixtureRequest, scheme: str, trust: Trust) -> Iterator[str]:
    host = INNER[request.param]
    with web_server("::1" if host == "::1" else "127.0.0.1", trust.certificate if scheme == "https" else None) as port:
        yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def check(answers: tuple[bytes, int, bytes]) -> None:
    assert answers[0] in (b"hello 127.0.0.1", b"hello ::1")
    assert answers[1:] == (BIG, PAYLOAD)


@pytest.mark.parametrize("ask", ASYNC, ids=lambda ask: ask.__name__)
def test_pages_are_fetched(ask: Any, url: str, trust: Trust) -> None:
    tunnel = Inside()
    check(run(ask(tunnel, url, trust.context)))
    assert tunnel.opened
    assert set(tunnel.asked) == ({"web.internal"} if "web.internal" in url else set())


@pytest.mark.parametrize("ask", BLOCKING, ids=lambda ask: ask.__name__)
def test_pages_are_fetched_by_blocking_adapters(ask: Any, url: str, trust: Trust) -> None:
    tunnel = Inside()
    check(ask(tunnel, url, trust.context))
    assert len(tunnel.opened) == 1, "all requests use one connection"


def test_pages_are_fetched_by_requests(url: str, trust: Trust) -> None:
    tunnel = Inside()
    check(by_requests(tunnel, url, trust.context, trust.authority))
    assert len(tunnel.opened) == 1


def test_anyio_on_trio_uses_a_blocking_tunnel(url: str, trust: Trust) -> None:
    class Blocking:
        create_connection = staticmethod(Inside().create_connection)

    answers = anyio.run(partial(by_anyio, Blocking(), url, trust.context), backend="trio")
    check(answers)


def test_uvloop_accepts_the_same_sockets(url: str, trust: Trust) -> None:
    uvloop = pytest.importorskip("uvloop")
    for ask in ASYNC:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            check(runner.run(ask(Inside(), url, trust.context)))  # type: ignore[arg-type]


# Each adapter raises its library's exceptions


async def get_httpx(tunnel: Any, url: str, **options: Any) -> None:
    timeout = options.pop("timeout", 20)
    transport = wyrmhole.adapters.httpx.AsyncTunnelTransport(tunnel, **options)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
        await client.get(url)


async def get_httpx2(tunnel: Any, url: str, **options: Any) -> None:
    timeout = options.pop("timeout", 20)
    transport = wyrmhole.adapters.httpx2.AsyncTunnelTransport(tunnel, **options)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout) as client:
        await client.get(url)


async def get_aiohttp(tunnel: Any, url: str, **options: Any) -> None:
    timeout = aiohttp.ClientTimeout(total=options.pop("timeout", 20))
    async with aiohttp.ClientSession(
        connector=wyrmhole.adapters.aiohttp.TunnelConnector(tunnel, **options), timeout=timeout
    ) as session:
        await session.get(url)


def get_blocking_httpx(tunnel: Any, url: str, **options: Any) -> None:
    timeout = options.pop("timeout", 20)
    with httpx.Client(transport=wyrmhole.adapters.httpx.TunnelTransport(tunnel, **options), timeout=timeout) as client:
        client.get(url)


def get_requests(tunnel: Any, url: str, **options: Any) -> None:
    with requests.Session() as session:
        wyrmhole.adapters.requests.mount(session, tunnel)
        session.get(url, timeout=options.get("timeout", 20))


def attempt(get: Callable[..., Any], url: str, **options: Any) -> None:
    made = get(Inside(), url, **options)
    if inspect.isawaitable(made):

        async def awaited() -> None:
            await made

        run(awaited())


CASES = [
    (get_httpx, httpx.ConnectError, httpx.ConnectError, httpx.ReadTimeout, httpx.ConnectError),
    (get_httpx2, httpx2.ConnectError, httpx2.ConnectError, httpx2.ReadTimeout, httpx2.ConnectError),
    (get_blocking_httpx, httpx.ConnectError, httpx.ConnectError, httpx.ReadTimeout, httpx.ConnectError),
    (
        get_aiohttp,
        aiohttp.ClientConnectorError,
        aiohttp.ClientConnectorDNSError,
        TimeoutError,
        aiohttp.ClientConnectorCertificateError,
    ),
    (
        get_requests,
        requests.ConnectionError,
        requests.ConnectionError,
        requests.ReadTimeout,
        requests.exceptions.SSLError,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_failure_raises_the_exception_of_the_library(case: Any, trust: Trust) -> None:
    get, refused, no_name, slow, distrusted = case
    with pytest.raises(refused, match=r"refused|Connect call failed"):
        attempt(get, "http://127.0.0.1:1/")
    with pytest.raises(no_name):
        attempt(get, "http://gone.internal/")
    with web_server("127.0.0.1") as port, pytest.raises(slow):
        attempt(get, f"http://127.0.0.1:{port}/slow", timeout=0.05)
    with web_server("127.0.0.1", trust.certificate) as port, pytest.raises(distrusted, match=r"(?i)certificate"):
        attempt(get, f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize("get", [get_httpx, get_httpx2, get_blocking_httpx], ids=lambda get: get.__name__)
def test_malformed_answer_is_a_protocol_error(get: Any) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"EHLO\r\n\r\n")

    async def scenario() -> None:
        async with server(rude) as port:
            await asyncio.to_thread(attempt, get, f"http://127.0.0.1:{port}/")

    with pytest.raises((httpx.RemoteProtocolError, httpx2.RemoteProtocolError)):
        run(scenario())


def test_requests_adapter_refuses_a_proxy() -> None:
    with requests.Session() as session:
        wyrmhole.adapters.requests.mount(session, Inside())
        with pytest.raises(requests.exceptions.InvalidProxyURL, match="go through a tunnel"):
            session.get("http://web.internal/", proxies={"http": "http://127.0.0.1:1"}, timeout=20)


def test_connectable_raises_the_exception_of_anyio() -> None:
    async def scenario() -> None:
        connectable = wyrmhole.adapters.anyio.TunnelConnectable(Inside(), "127.0.0.1", 1)
        with pytest.raises(anyio.ConnectionFailed, match="port 1"):
            await connectable.connect()

    run(scenario())


def test_cancelled_handshake_leaves_no_socket(trust: Trust) -> None:
    async def scenario() -> None:
        tunnel = Inside()
        stalled = asyncio.Event()

        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            stalled.set()
            await reader.read()

        async with server(stall) as port:
            transport = wyrmhole.adapters.httpx.AsyncTunnelTransport(tunnel, verify=trust.context)
            async with httpx.AsyncClient(transport=transport) as client:
                getting = asyncio.create_task(client.get(f"https://127.0.0.1:{port}/"))
                await stalled.wait()
                getting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await getting
        assert tunnel.still_open == 0

    run(scenario())
