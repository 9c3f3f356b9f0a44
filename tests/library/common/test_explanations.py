"""Errors name the cause if a tunnel does not work: for each verb, service and adapter."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
import requests

import wyrmhole
import wyrmhole.sync
from tests.support.loopback import SILENCE, Silent
from tests.support.tunnels import FAR_V4, NEAR_V4, NOBODY_V4, generate, near_config, run, tunnels
from wyrmhole.adapters.aiohttp import TunnelConnector
from wyrmhole.adapters.anyio import connect_tcp
from wyrmhole.adapters.httpx import AsyncTunnelTransport, TunnelTransport
from wyrmhole.adapters.requests import mount
from wyrmhole.library.common import explain
from wyrmhole.library.names.address_info import info, literal
from wyrmhole.library.services.service import Limits, reason_of
from wyrmhole.library.stacks.stack import Pending

network = pytest.mark.network
OUTSIDE = "10.99.0.1"
NO_HANDSHAKE = "no handshake with peer far (127.0.0.1:"
CHECK = (
    "check that the endpoint answers, that the keys match on both sides, that UDP is not filtered, and that the clock "
    "here is not behind"
)
VERBS: dict[str, Callable[[wyrmhole.Tunnel, str, float], Awaitable[object]]] = {
    "open_connection": lambda tunnel, host, limit: tunnel.open_connection(host, 80, timeout=limit),
    "connect_socket": lambda tunnel, host, limit: tunnel.connect_socket(host, 80, timeout=limit),
    "create_connection": lambda tunnel, host, limit: tunnel.create_connection(
        asyncio.Protocol, host, 80, timeout=limit
    ),
    "ping": lambda tunnel, host, limit: tunnel.ping(host, timeout=limit),
}


@pytest.fixture
def silent() -> Iterator[int]:
    """Yield the port of an endpoint that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@asynccontextmanager
async def cut_off(port: int, more: str = "") -> AsyncIterator[wyrmhole.Tunnel]:
    """Open a tunnel whose peer never answers, with an initiation already sent."""
    async with wyrmhole.open(near_config(generate(), generate(), port, more)) as tunnel:
        yield tunnel


async def text_of(failing: Awaitable[object], kind: type[BaseException] = OSError) -> str:
    with pytest.raises(kind) as caught:
        await failing
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@network
@pytest.mark.parametrize("verb", VERBS)
def test_verb_reports_a_peer_that_never_answered(verb: str, silent: int) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            text = await text_of(VERBS[verb](tunnel, FAR_V4, 0.3), TimeoutError)
            where = FAR_V4 if verb == "ping" else f"{FAR_V4}:80"
            assert text.startswith(f"{where} did not answer within 0.3 s; {NO_HANDSHAKE}{silent})")
            assert "1 initiation unanswered in 0 s" in text and text.endswith(CHECK)

    run(scenario())


@network
@pytest.mark.parametrize("verb", VERBS)
def test_verb_reports_a_silent_host_behind_a_session(verb: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await ends.near.wait_handshake(timeout=20)
            text = await text_of(VERBS[verb](ends.near, NOBODY_V4, 0.2), TimeoutError)
            assert "peer far (127.0.0.1:" in text and "so the host inside does not answer" in text

    run(scenario())


@network
@pytest.mark.parametrize("verb", VERBS)
def test_address_without_a_route_is_reported_with_the_cause(verb: str, silent: int) -> None:
    failed = "no answer to a ping of {0}: " if verb == "ping" else "Connect call failed ('{0}', 80): "

    async def scenario() -> None:
        text = near_config(generate(), generate(), silent)
        async with wyrmhole.open(text) as tunnel:
            message = await text_of(VERBS[verb](tunnel, OUTSIDE, 5))
            reason = f"{OUTSIDE} is in no peer's AllowedIPs (10.66.0.0/24, fd66::/64)"
            assert message == f"[Errno 113] {failed.format(OUTSIDE)}No route to host; {reason}"
        async with wyrmhole.open(text.partition("Endpoint")[0]) as tunnel:
            message = await text_of(VERBS[verb](tunnel, FAR_V4, 5))
            assert message.endswith("; peer far has no Endpoint here and has not connected yet")
        async with wyrmhole.open(text.partition("[Peer]")[0]) as tunnel:
            message = await text_of(VERBS[verb](tunnel, FAR_V4, 5))
            assert message.endswith("; the tunnel has no peers: add a [Peer] to its configuration")

    run(scenario())


@network
def test_datagrams_without_a_route_are_refused_with_the_cause(silent: int) -> None:
    """The kernel does not report an unreachable host to the sender of datagrams."""

    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            for failing in (
                tunnel.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(OUTSIDE, 53)),
                tunnel.connect_socket(OUTSIDE, 53, type=socket.SOCK_DGRAM),
            ):
                message = await text_of(failing)
                assert f"('{OUTSIDE}', 53): No route to host; {OUTSIDE} is in no peer's AllowedIPs" in message
            for inside in (FAR_V4, NEAR_V4, "127.0.0.1", "fd66::2"):
                (await tunnel.connect_socket(inside, 53, type=socket.SOCK_DGRAM)).close()
            await tunnel.reload(tunnel.config.emit().replace("[Peer]", "[Peer]\nAllowedIPs = 10.99.0.0/24"))
            (await tunnel.connect_socket(OUTSIDE, 53, type=socket.SOCK_DGRAM)).close()

    run(scenario())


@network
@pytest.mark.parametrize("verb", VERBS)
def test_family_that_the_tunnel_lacks_is_named(verb: str, silent: int) -> None:
    async def scenario() -> None:
        text = near_config(generate(), generate(), silent).replace(", fd66::1/64", "")
        async with wyrmhole.open(text) as tunnel:
            message = await text_of(VERBS[verb](tunnel, "fd66::2", 5))
            assert f"the tunnel has no IPv6 address (Address = {NEAR_V4}/24)" in message

    run(scenario())


@network
def test_refused_connection_does_not_mention_the_path() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            message = await text_of(ends.near.open_connection(FAR_V4, 9), ConnectionRefusedError)
            assert message == f"[Errno 111] Connect call failed ('{FAR_V4}', 9): Connection refused"

    run(scenario())


@network
def test_missing_handshake_is_explained(silent: int) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            (peer,) = tunnel.peers.values()
            for failing in (
                tunnel.wait_handshake(timeout=0.2),
                peer.wait_handshake(timeout=0.2),
                peer.handshake(timeout=0.2),
                tunnel.peers.handshake(peer.public_key, timeout=0.2),
            ):
                message = await text_of(failing, TimeoutError)
                assert "handshake within 0.2 s: no handshake with peer far (127.0.0.1:" in message
                assert message.endswith(CHECK)
            await tunnel.peers.add(generate().public_key(), name="bee")
            message = await text_of(tunnel.wait_handshake(timeout=0.1), TimeoutError)
            assert message.endswith("; peer bee has no Endpoint here and has not connected yet")

    run(scenario())


@network
def test_list_of_peers_without_a_session_is_limited(silent: int) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            for number in range(9):
                await tunnel.peers.add(generate().public_key(), name=f"bee{number}")
            message = await text_of(tunnel.wait_handshake(timeout=0), TimeoutError)
            assert message.endswith("; and 7 more peers")

    run(scenario())


@network
def test_unresolvable_name_is_explained(silent: int) -> None:
    async def scenario() -> None:
        async with cut_off(silent, f"DNS = {FAR_V4}\n") as tunnel:
            message = await text_of(tunnel.getaddrinfo("web.internal", 80), socket.gaierror)
            assert message.startswith("[Errno -3] no name server of the tunnel answered for web.internal: ")
            assert NO_HANDSHAKE in message
            message = await text_of(tunnel.open_connection("db.internal", 80, timeout=0.1), TimeoutError)
            assert message.startswith(
                f"db.internal:80 did not answer within 0.1 s; its name was not resolved: {NO_HANDSHAKE}"
            )
            message = await text_of(tunnel.ping("db.internal", timeout=0.1), TimeoutError)
            assert message.startswith("db.internal did not answer within 0.1 s; its name was not resolved")
        async with cut_off(silent, "DNS = 10.99.0.53\n") as tunnel:
            for failing in (
                tunnel.getaddrinfo("web.internal", 80),
                tunnel.open_connection("web.internal", 80),
                tunnel.ping("web.internal"),
                tunnel.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("web.internal", 53)),
            ):
                message = await text_of(failing, socket.gaierror)
                assert "no name can be resolved: DNS server 10.99.0.53 is in no peer's AllowedIPs" in message

    run(scenario())


@network
def test_error_lists_both_addresses_of_a_name(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(self: wyrmhole.Tunnel, host: str, port: int, type: int = 0, **_: object) -> list[Any]:
        return [info(address, port, type) for each in (FAR_V4, "fd66::2") if (address := literal(each)) is not None]

    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            monkeypatch.setattr(wyrmhole.Tunnel, "getaddrinfo", two)
            message = await text_of(tunnel.open_connection("db.internal", 80, timeout=0.6), TimeoutError)
            assert f"db.internal:80 did not answer within 0.6 s; tried {FAR_V4} and fd66::2; {NO_HANDSHAKE}" in message
            assert message.count("no handshake") == 1
        async with tunnels() as ends:
            with pytest.raises(ConnectionRefusedError) as caught:
                await ends.near.connect_socket("db.internal", 9)
            assert f"('{FAR_V4}', 9): Connection refused" in str(caught.value)
            assert any("('fd66::2', 9): Connection refused" in note for note in caught.value.__notes__)
            assert "and then: " in reason_of(caught.value)

    run(scenario())


@network
def test_timeout_of_the_kernel_is_explained_too(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time limit the kernel repeats a SYN for 134 s."""

    async def given_up(pending: Pending) -> Any:
        pending.socket.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            await text_of(tunnel.wait_handshake(timeout=0.1), TimeoutError)
            monkeypatch.setattr("wyrmhole.library.sockets.verbs.complete", given_up)
            message = await text_of(tunnel.open_connection(FAR_V4, 80), TimeoutError)
            assert f"Connect call failed ('{FAR_V4}', 80): Connection timed out; {NO_HANDSHAKE}" in message

    run(scenario())


@network
def test_tunnel_closed_in_the_meantime_is_the_cause() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            waiting = asyncio.ensure_future(ends.near.connect_socket(NOBODY_V4, 80))
            await asyncio.sleep(0.05)
            await ends.near.close()
            message = await text_of(waiting, ConnectionAbortedError)
            assert message.endswith("; the tunnel was closed")

    run(scenario())


@network
def test_address_that_cannot_be_bound_is_named() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            foreign = (
                "cannot bind to 10.1.2.3:7 inside the tunnel: Cannot assign requested address; the tunnel's addresses"
            )
            for failing in (
                ends.near.create_server(asyncio.Protocol, "10.1.2.3", 7),
                ends.near.connect_socket(FAR_V4, 80, local_addr=("10.1.2.3", 7)),
                ends.near.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("10.1.2.3", 7)),
            ):
                assert foreign in await text_of(failing)
            async with await ends.near.create_server(asyncio.Protocol, NEAR_V4, 7):
                message = await text_of(ends.near.create_server(asyncio.Protocol, NEAR_V4, 7))
                assert message == f"[Errno 98] cannot bind to {NEAR_V4}:7 inside the tunnel: Address already in use"

    run(scenario())


@network
def test_hanging_tls_handshake_is_not_blamed_on_the_path() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(lambda reader, writer: asyncio.sleep(20), port=443):
            message = await text_of(ends.near.open_connection(FAR_V4, 443, ssl=True, server_hostname="x", timeout=1))
            assert message == f"{FAR_V4}:443 accepted the connection, but the TLS handshake took longer than 1 s"

    run(scenario())


# Services


@network
def test_forward_logs_why_its_target_does_not_answer(silent: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            forward = await tunnel.forward("127.0.0.1:0", f"{FAR_V4}:80", limits=Limits(connect=0.2))
            reader, writer = await asyncio.open_connection(*forward.addresses[0])
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            outside = await tunnel.forward("127.0.0.1:0", f"{OUTSIDE}:80")
            reader, writer = await asyncio.open_connection(*outside.addresses[0])
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(scenario())
    message = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(f"{FAR_V4}:80 did not answer within 0.2 s; {NO_HANDSHAKE}" in line for line in message)
    assert any(f"No route to host; {OUTSIDE} is in no peer's AllowedIPs" in line for line in message)


@network
def test_proxy_answers_with_the_cause(silent: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            proxy = await tunnel.proxy("127.0.0.1:0", limits=Limits(connect=0.2))
            for host, words in ((FAR_V4, NO_HANDSHAKE), (OUTSIDE, "is in no peer's AllowedIPs")):
                reader, writer = await asyncio.open_connection(*proxy.addresses[0])
                writer.write(f"CONNECT {host}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert words in (await reader.read()).decode()
                writer.close()
            reader, writer = await asyncio.open_connection(*proxy.addresses[0])
            writer.write(b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(FAR_V4) + b"\x00\x50")
            assert (await reader.read())[2:4] == b"\x05\x04", "host unreachable"
            writer.close()

    caplog.set_level(logging.INFO, "wyrmhole")
    run(scenario())
    assert any(f"{FAR_V4} port 80: " in line and NO_HANDSHAKE in line for line in caplog.messages)


def test_reason_is_the_message_of_the_tunnel() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 81)")
    assert reason_of(refused) == "Connection refused"
    far = explain.named(OSError(errno.EHOSTUNREACH, "No route to host"), "10.0.0.1", 81, "no peer")
    assert reason_of(far) == "No route to host; no peer"
    assert reason_of(socket.gaierror(socket.EAI_NONAME, "no such name")) == "no such name"
    assert reason_of(TimeoutError()) == "it took too long"
    assert reason_of(ConnectionResetError()) == "ConnectionResetError"
    far.add_note("and then: [Errno 111] the other one")
    assert reason_of(far) == "No route to host; no peer; and then: [Errno 111] the other one"


# Adapters keep the text when they wrap an exception


@network
def test_async_adapters_keep_the_cause(silent: int) -> None:
    async def scenario() -> None:
        async with cut_off(silent) as tunnel:
            async with httpx.AsyncClient(transport=AsyncTunnelTransport(tunnel), timeout=0.3) as client:
                assert NO_HANDSHAKE in await text_of(client.get(f"http://{FAR_V4}/"), httpx.ConnectTimeout)
                assert "AllowedIPs" in await text_of(client.get(f"http://{OUTSIDE}/"), httpx.ConnectError)
            async with aiohttp.ClientSession(
                connector=TunnelConnector(tunnel), timeout=aiohttp.ClientTimeout(sock_connect=0.3)
            ) as session:
                message = await text_of(session.get(f"http://{OUTSIDE}/"), aiohttp.ClientConnectorError)
                assert f"{OUTSIDE} is in no peer's AllowedIPs" in message
                with pytest.raises(aiohttp.ConnectionTimeoutError) as caught:
                    await session.get(f"http://{FAR_V4}/")
                assert NO_HANDSHAKE in str(caught.value.__cause__)
            assert NO_HANDSHAKE in await text_of(connect_tcp(tunnel, FAR_V4, 80, timeout=0.3), TimeoutError)
            assert "AllowedIPs" in await text_of(connect_tcp(tunnel, OUTSIDE, 80), OSError)

    run(scenario())


@network
def test_blocking_verbs_and_adapters_keep_the_cause(silent: int) -> None:
    with wyrmhole.sync.open(near_config(generate(), generate(), silent)) as tunnel:
        with pytest.raises(TimeoutError, match="no handshake with peer far"):
            tunnel.create_connection((FAR_V4, 80), timeout=0.3)
        with pytest.raises(TimeoutError, match="no handshake with peer far"):
            tunnel.ping(FAR_V4, timeout=0.2)
        with pytest.raises(TimeoutError, match="no handshake with peer far"):
            tunnel.wait_handshake(timeout=0.2)
        with requests.Session() as session:
            mount(session, tunnel)
            with pytest.raises(requests.ConnectTimeout, match="no handshake with peer far"):
                session.get(f"http://{FAR_V4}/", timeout=0.3)
            with pytest.raises(requests.ConnectionError, match="is in no peer's AllowedIPs"):
                session.get(f"http://{OUTSIDE}/", timeout=5)
        with httpx.Client(transport=TunnelTransport(tunnel), timeout=0.3) as client:
            with pytest.raises(httpx.ConnectTimeout, match="no handshake with peer far"):
                client.get(f"http://{FAR_V4}/")
            with pytest.raises(httpx.ConnectError, match="is in no peer's AllowedIPs"):
                client.get(f"http://{OUTSIDE}/")


def test_read_timeout_has_a_message() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        from tests.support.loopback import Loopback

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with httpx.AsyncClient(transport=AsyncTunnelTransport(Loopback()), timeout=0.1) as client:
            assert await text_of(client.get(url), httpx.ReadTimeout) == "received nothing within 0.1 s"
        async with httpx.AsyncClient(transport=AsyncTunnelTransport(Silent()), timeout=0.1) as client:
            assert SILENCE in await text_of(client.get(url), httpx.ConnectTimeout)
        server.close()

    run(scenario())
