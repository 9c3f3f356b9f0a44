"""How operations end: errors like those of the standard library, cancellation, and closing."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import wyrmhole
from tests.netns.host import until
from tests.support.tunnels import (
    FAR,
    FAR_V4,
    NOBODY_V4,
    PATIENCE,
    Collect,
    Ends,
    echo,
    far_config,
    generate,
    on_each_family,
    on_each_loop,
    open_descriptors,
    run,
    sockets_of,
    tunnels,
)

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("device")]


@on_each_loop
@on_each_family
def test_port_without_a_listener_refuses(loop: str, version: int) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            for connect in (ends.near.open_connection, ends.near.connect_socket):
                with pytest.raises(ConnectionRefusedError):
                    await connect(FAR[version], 9)

    run(scenario(), loop)


@on_each_loop
def test_silent_host_times_out(loop: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            for attempt in (
                ends.near.open_connection(NOBODY_V4, 80, timeout=0.2),
                ends.near.connect_socket(NOBODY_V4, 80, timeout=0.2),
                ends.near.create_connection(asyncio.Protocol, NOBODY_V4, 80, timeout=0.2),
                ends.near.ping(NOBODY_V4, timeout=0.2),
            ):
                with pytest.raises(TimeoutError):
                    await attempt

    run(scenario(), loop)


def test_address_outside_allowed_ips_has_no_route() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            with pytest.raises(OSError, match="No route"):
                await ends.near.open_connection("10.99.0.1", 80, timeout=5)

    run(scenario())


def test_name_is_never_resolved_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the host was asked"))
            for attempt in (
                ends.near.open_connection("localhost.example", 80),
                ends.near.ping("localhost.example"),
                ends.near.create_datagram_endpoint(Collect, remote_addr=("localhost.example", 80)),
                ends.near.start_server(echo, "localhost.example", 80),
            ):
                with pytest.raises(socket.gaierror, match="DNS ="):
                    await attempt

    run(scenario())


def test_port_that_is_neither_number_nor_service_is_refused() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            for port in ("no-such-service", "65536", -1):
                with pytest.raises(socket.gaierror, match="not a port"):
                    await ends.near.getaddrinfo(FAR_V4, port)
            everything = await ends.near.getaddrinfo(FAR_V4, "domain", 0, 0)
            assert everything == socket.getaddrinfo(FAR_V4, "domain", 0, 0)
            assert await ends.near.getaddrinfo(FAR_V4, None, type=0) == socket.getaddrinfo(FAR_V4, None)
            assert {info[1] for info in await ends.near.getaddrinfo(None, 80, type=0)} == {1, 2, 3}

    run(scenario())


def test_port_in_use_and_foreign_address_cannot_be_bound() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, FAR_V4, 7000):
            before = sockets_of(ends.near, ends.far)
            with pytest.raises(OSError, match="in use"):
                await ends.far.start_server(echo, FAR_V4, 7000)
            with pytest.raises(OSError, match="assign"):
                await ends.far.start_server(echo, "192.0.2.1", 7000)
            assert sockets_of(ends.near, ends.far) == before

    run(scenario())


# Closing


@on_each_loop
def test_close_ends_every_open_socket_at_once(loop: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, _ = await ends.near.open_connection(FAR_V4, 7000)
            idle = await ends.near.connect_socket(FAR[6], 7000)
            detached = socket.socket(fileno=(await ends.near.connect_socket(FAR_V4, 7000)).detach())
            waiting = asyncio.ensure_future(ends.near.connect_socket(NOBODY_V4, 80))
            await ends.near.create_datagram_endpoint(Collect, remote_addr=(FAR_V4, 7000))
            server = await ends.near.start_server(echo, port=7001)
            reading = asyncio.ensure_future(reader.read(1))
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await ends.near.close()
                for pending in (reading, waiting):
                    with pytest.raises(ConnectionAbortedError):
                        await pending
            for sock in (idle, detached):
                with sock, pytest.raises(ConnectionAbortedError):
                    sock.recv(1)
            assert not server.is_serving()

    run(scenario(), loop)


def test_close_reaches_the_other_side() -> None:
    async def scenario() -> None:
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"!")
            try:
                ended.set_result(await reader.read(1))
            except OSError as error:
                ended.set_exception(error)
            writer.close()

        async with tunnels() as ends, await ends.far.start_server(watch, port=7000):
            reader, _ = await ends.near.open_connection(FAR_V4, 7000)
            assert await reader.readexactly(1) == b"!"
            await ends.near.close()
            with pytest.raises(ConnectionResetError):
                await ended

    run(scenario())


def test_every_verb_of_a_closed_tunnel_raises() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            near = ends.near
            await near.close()
            attempts: list[Callable[[], Awaitable[Any]]] = [
                lambda: near.open_connection(FAR_V4, 80),
                lambda: near.connect_socket(FAR_V4, 80),
                lambda: near.create_connection(asyncio.Protocol, FAR_V4, 80),
                lambda: near.start_server(echo),
                lambda: near.create_server(asyncio.Protocol),
                lambda: near.create_datagram_endpoint(Collect),
                lambda: near.getaddrinfo(FAR_V4, 80),
                lambda: near.open_socket(socket.AF_INET),
                lambda: near.ping(FAR_V4),
                lambda: near.reload(),
                lambda: near.wait_handshake(1),
                lambda: near.peers.add(generate().public_key()),
                lambda: near.forward("127.0.0.1:0", "10.66.0.2:80"),
                lambda: near.proxy("127.0.0.1:0"),
            ]
            for attempt in attempts:
                with pytest.raises(wyrmhole.TunnelError, match="closed"):
                    await attempt()
            for call in (near.socket, near.stats, near.events):
                with pytest.raises(wyrmhole.TunnelError, match="closed"):
                    call()

    run(scenario())


def test_closed_tunnel_leaves_nothing() -> None:
    async def scenario() -> None:
        async with tunnels():
            pass
        # Garbage of earlier tests could be collected at any time.
        gc.collect()
        before = open_descriptors()
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, writer = await ends.near.open_connection(FAR_V4, 7000)
            writer.write(b"x")
            await reader.readexactly(1)
            writer.close()
        await asyncio.sleep(0)
        gc.collect()
        assert len(open_descriptors()) == len(before)

    run(scenario())


def test_dropped_open_tunnel_causes_a_warning() -> None:
    async def leave() -> None:
        await wyrmhole.open(far_config(generate(), generate()))

    gc.collect()
    before = len(open_descriptors())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(leave())
    assert any(issubclass(each.category, ResourceWarning) and "never closed" in str(each.message) for each in caught)
    until(lambda: len(open_descriptors()) <= before, "everything is released")


def test_three_hundred_streams_leave_no_descriptor() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            await once(ends)
            before = sockets_of(ends.near, ends.far)
            for _ in range(300):
                await once(ends)
            assert sockets_of(ends.near, ends.far) <= before + 2

    async def once(ends: Ends) -> None:
        reader, writer = await ends.near.open_connection(FAR_V4, 7000)
        writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    run(scenario())


def test_ten_thousand_connections_leave_no_descriptor() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.create_server(asyncio.Protocol, port=7000):
            (await ends.near.connect_socket(FAR_V4, 7000)).close()
            await settle()
            before = sockets_of(ends.near, ends.far)
            for _ in range(10_000):
                (await ends.near.connect_socket(FAR_V4, 7000)).close()
            await until_equal(lambda: sockets_of(ends.near, ends.far), before)

    run(scenario(), patience=PATIENCE * 10)


# Cancellation


VERBS: dict[str, Callable[[wyrmhole.Tunnel], Awaitable[Any]]] = {
    "open_connection": lambda near: near.open_connection(FAR_V4, 7000),
    "open_connection to a silent host": lambda near: near.open_connection(NOBODY_V4, 7000),
    "connect_socket": lambda near: near.connect_socket(FAR_V4, 7000),
    "create_connection": lambda near: near.create_connection(asyncio.Protocol, FAR_V4, 7000),
    "start_server": lambda near: near.start_server(echo, port=0),
    "create_datagram_endpoint": lambda near: near.create_datagram_endpoint(Collect, remote_addr=(FAR_V4, 7)),
    "ping": lambda near: near.ping(FAR_V4),
    "wait_handshake": lambda near: near.wait_handshake(),
    "proxy": lambda near: near.proxy("127.0.0.1:0"),
}


@pytest.mark.parametrize("verb", list(VERBS))
def test_verb_cancelled_at_any_await_leaves_nothing(verb: str) -> None:
    """Cancel the verb at each turn of the loop, until it is done or thirty turns have passed."""

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            await end_of(await ends.near.connect_socket(FAR_V4, 7000))
            await settle()
            before = inside_of(ends)
            for turns in range(30):
                task = asyncio.ensure_future(VERBS[verb](ends.near))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.done():
                    await end_of(task.result())
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until_equal(lambda: inside_of(ends), before)
            assert await ends.near.ping(FAR_V4) > 0

    def inside_of(ends: Ends) -> int:
        return sockets_of(ends.near, ends.far)

    run(scenario())


async def end_of(made: Any) -> None:
    """Close the result of a verb."""
    for part in made if isinstance(made, tuple) else (made,):
        if hasattr(part, "close"):
            part.close()
        if hasattr(part, "wait_closed"):
            await part.wait_closed()


async def until_equal(look: Callable[[], int], wanted: int) -> None:
    """Wait, because a thread may still be at work for a cancelled caller, and closes the result afterwards."""
    deadline = asyncio.get_running_loop().time() + 10
    while (found := look()) != wanted:
        assert asyncio.get_running_loop().time() < deadline, f"{found} descriptors, and {wanted} before"
        await asyncio.sleep(0.01)


async def settle() -> None:
    """Run the loop, so that servers close their ends of cancelled connections."""
    last = -1
    while (count := len(open_descriptors())) != last:
        last = count
        for _ in range(100):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_open_cancelled_at_any_await_leaves_nothing(turns: int) -> None:
    async def scenario() -> None:
        before = len(open_descriptors())
        task = asyncio.ensure_future(wyrmhole.open(far_config(generate(), generate())).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        if not task.done():
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task.result().close()
        async with asyncio.timeout(20):
            while len(open_descriptors()) > before:
                await asyncio.sleep(0.01)

    run(scenario())
