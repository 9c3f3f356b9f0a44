"""Forwards and exposures over loopback: data, half-close, errors and limits."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest

from tests.support.loopback import (
    PATIENCE,
    Loopback,
    ask,
    count_then_answer,
    echo,
    eventually,
    run,
    server,
    udp_client,
    udp_echo,
)
from wyrmhole.library.services.dialer import HostPort
from wyrmhole.library.services.forward import expose, forward
from wyrmhole.library.services.service import Limits
from wyrmhole.library.services.splice import SIZE, splice


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, 5_000_000])
def test_bytes_and_end_of_stream_are_forwarded(size: int) -> None:
    async def scenario() -> None:
        data = os.urandom(size)
        tunnel = Loopback(db_internal="127.0.0.1")
        async with server(echo) as port, await forward(tunnel, "127.0.0.1:0", f"db.internal:{port}") as carried:
            reader, writer = await asyncio.open_connection(*carried.addresses[0])
            reading = asyncio.create_task(reader.read(-1))
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            assert await reading == data
            writer.close()
            assert tunnel.asked == ["db.internal"]
        assert tunnel.still_open == 0

    run(scenario())


def test_half_close_is_forwarded_before_the_answer() -> None:
    async def scenario() -> None:
        async with (
            server(count_then_answer) as port,
            await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as carried,
        ):
            reader, writer = await asyncio.open_connection(*carried.addresses[0])
            writer.write(bytes(300_000))
            writer.write_eof()
            assert await reader.read() == b"300000"
            writer.close()

    run(scenario())


def test_reset_by_the_server_resets_the_client() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def scenario() -> None:
        async with server(rude) as port, await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as carried:
            reader, writer = await asyncio.open_connection(*carried.addresses[0])
            writer.write(b"xy")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(scenario())


@pytest.mark.parametrize("target", ["127.0.0.1:1", "nowhere.internal:80"])
def test_unavailable_target_resets_only_that_client(target: str) -> None:
    async def scenario() -> None:
        async with await forward(Loopback(), "127.0.0.1:0", target) as carried:
            for _ in range(2):
                reader, writer = await asyncio.open_connection(*carried.addresses[0])
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()

    run(scenario())


def test_back_pressure_reaches_the_sender() -> None:
    """A server that does not read stops the client after a few socket buffers, not when memory is exhausted."""

    async def scenario() -> None:
        reads = asyncio.Event()

        async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await reads.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            await count_then_answer(reader, writer)

        async with server(stubborn) as port, await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as carried:
            loop = asyncio.get_running_loop()
            with socket.create_connection(carried.addresses[0]) as client:
                client.setblocking(False)
                taken = idle = 0
                while idle < 200:
                    try:
                        taken += client.send(bytes(1 << 16))
                        idle = 0
                    except BlockingIOError:
                        idle += 1
                        await asyncio.sleep(0)
                assert taken < 64_000_000
                reads.set()
                rest = bytes(100_000)
                await loop.sock_sendall(client, rest)
                client.shutdown(socket.SHUT_WR)
                assert await loop.sock_recv(client, 100) == b"%d" % (taken + len(rest))

    run(scenario())


def test_connections_above_the_limit_wait() -> None:
    async def scenario() -> None:
        async with (
            server(echo) as port,
            await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}", limits=Limits(connections=1)) as carried,
        ):
            first = await asyncio.open_connection(*carried.addresses[0])
            second = await asyncio.open_connection(*carried.addresses[0])
            first[1].write(b"one")
            assert await first[0].readexactly(3) == b"one"
            second[1].write(b"two")
            assert carried.connections == 1
            first[1].close()
            assert await second[0].readexactly(3) == b"two"
            second[1].close()

    run(scenario())


def test_close_ends_everything_at_once_and_is_idempotent() -> None:
    async def scenario() -> None:
        tunnel = Loopback()
        async with server(echo) as port:
            carried = await forward(tunnel, "127.0.0.1:0", f"127.0.0.1:{port}")
            reader, writer = await asyncio.open_connection(*carried.addresses[0])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            carried.close()
            carried.close()
            await carried.wait_closed()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*carried.addresses[0])
            writer.close()
        assert tunnel.still_open == 0
        assert "closed" in repr(carried)

    run(scenario())


def test_cancelled_splice_closes_both_sockets() -> None:
    async def scenario() -> None:
        (one, far), (other, away) = socket.socketpair(), socket.socketpair()
        for sock in (one, other):
            sock.setblocking(False)
        task = asyncio.create_task(splice(one, other))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert one.fileno() == other.fileno() == -1
        far.close()
        away.close()

    run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_udp_clients_get_their_own_answers(host: str) -> None:
    async def scenario() -> None:
        async with (
            udp_echo(host) as (port, _),
            await forward(Loopback(), f"{HostPort(host, 0)}/udp", str(HostPort(host, port))) as carried,
        ):
            clients = [udp_client(*carried.addresses[0]) for _ in range(5)]
            answers = await asyncio.gather(*(ask(client, b"%d" % n) for n, client in enumerate(clients)))
            assert answers == [b"re:%d" % n for n in range(5)]
            assert await ask(clients[0], b"x" * 9000) == b"re:" + b"x" * 9000
            for client in clients:
                client.close()

    run(scenario())


def test_longest_idle_udp_flow_makes_room() -> None:
    async def scenario() -> None:
        tunnel = Loopback()
        async with (
            udp_echo() as (port, _),
            await forward(tunnel, "127.0.0.1:0", f"127.0.0.1:{port}", proto="udp", limits=Limits(flows=2)) as carried,
        ):
            clients = [udp_client(*carried.addresses[0]) for _ in range(3)]
            for client in (clients[0], clients[1], clients[0], clients[2]):
                await ask(client, b"hello")
            assert [sock.fileno() >= 0 for sock in tunnel.opened] == [True, False, True]
            for client in clients:
                client.close()
        assert tunnel.still_open == 0

    run(scenario())


def test_idle_udp_flow_ends() -> None:
    async def scenario() -> None:
        tunnel = Loopback()
        async with (
            udp_echo() as (port, _),
            await forward(tunnel, "127.0.0.1:0/udp", f"127.0.0.1:{port}", limits=Limits(idle=0.01)) as carried,
        ):
            with udp_client(*carried.addresses[0]) as client:
                await ask(client, b"hello")
                await eventually(lambda: tunnel.still_open == 0)
                assert await ask(client, b"again") == b"re:again"

    run(scenario())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5", "::1"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_answer_of_an_exposure_leaves_from_the_queried_address(address: str, proto: str) -> None:
    """A connected UDP socket takes an answer only from the address that it wrote to."""

    async def scenario() -> None:
        async with udp_echo() as (udp_port, _), server(echo) as tcp_port:
            port = udp_port if proto == "udp" else tcp_port
            async with await expose(Loopback(), ":0", f"127.0.0.1:{port}", proto=proto) as exposed:
                assert [host for host, _ in exposed.addresses] == ["0.0.0.0", "::"]
                assert len({port for _, port in exposed.addresses}) == 1
                if proto == "udp":
                    with udp_client(address, exposed.addresses[0][1]) as client:
                        assert await ask(client, b"hello") == b"re:hello"
                else:
                    reader, writer = await asyncio.open_connection(address, exposed.addresses[0][1])
                    writer.write(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                    writer.close()

    run(scenario())


def test_forward_without_a_host_listens_on_loopback_only() -> None:
    async def scenario() -> None:
        async with await forward(Loopback(), ":0", "10.0.0.1:1") as carried:
            assert {host for host, _ in carried.addresses} == {"127.0.0.1", "::1"}

    run(scenario())


@pytest.mark.parametrize(
    ("listen", "target", "proto", "expected"),
    [
        ("5432", "db:5432", None, "'5432' is not HOST:PORT"),
        ("127.0.0.1:x", "db:5432", None, "is not HOST:PORT"),
        ("::1:80", "db:5432", None, "in brackets"),
        ("127.0.0.1:66000", "db:5432", None, "the port must be at most 65535"),
        ("127.0.0.1:0/sctp", "db:5432", None, "is not HOST:PORT"),
        ("127.0.0.1:0", ":80", None, "expected a host and a port"),
        ("127.0.0.1:0", "db:0", None, "expected a host and a port"),
        ("127.0.0.1:0/udp", "db:1", "tcp", "tcp and udp"),
        ("127.0.0.1:0", "db:1", "quic", "tcp or udp"),
    ],
)
def test_invalid_address_or_protocol_is_one_clear_error(
    listen: str, target: str, proto: str | None, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        run(forward(Loopback(), listen, target, proto=proto))


def test_port_in_use_is_named() -> None:
    async def scenario() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1 port \d+"),
        ):
            await forward(Loopback(), f"127.0.0.1:{taken.getsockname()[1]}", "db:1")

    run(scenario())


def test_accepting_pauses_while_descriptors_are_exhausted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, [OSError(24, "Too many open files")]

        async def failing(sock: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", failing)
        monkeypatch.setattr("wyrmhole.library.services.service.PAUSE", 0)
        async with server(echo) as port, await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as carried:
            reader, writer = await asyncio.open_connection(*carried.addresses[0])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    run(scenario())
    assert "Too many open files" in caplog.text


def test_uvloop_carries_both_protocols() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        async with (
            server(echo) as port,
            udp_echo() as (udp_port, _),
            await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as tcp,
            await forward(Loopback(), "127.0.0.1:0/udp", f"127.0.0.1:{udp_port}") as udp,
        ):
            reader, writer = await asyncio.open_connection(*tcp.addresses[0])
            writer.write(b"x" * 1_000_000)
            writer.write_eof()
            assert len(await reader.read()) == 1_000_000
            writer.close()
            with udp_client(*udp.addresses[0]) as client:
                assert await ask(client, b"hello") == b"re:hello"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), PATIENCE))
