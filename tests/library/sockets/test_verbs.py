"""Every verb of a tunnel, over IPv4 and IPv6, on asyncio's loop and on uvloop. No privileges are needed."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from typing import cast

import pytest
import trustme

import wyrmhole
from tests.support.tunnels import (
    FAR,
    FAR_V4,
    FAR_V6,
    NEAR_V4,
    NEAR_V6,
    Collect,
    echo,
    on_each_family,
    on_each_loop,
    run,
    tunnels,
)

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("device")]


@on_each_loop
@on_each_family
def test_streams_carry_data_in_both_directions(loop: str, version: int) -> None:
    payload = os.urandom(3_000_000)

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, writer = await ends.near.open_connection(FAR[version], 7000, timeout=5)
            sending = asyncio.ensure_future(send(writer))
            assert await reader.readexactly(len(payload)) == payload
            await sending
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(payload)
        await writer.drain()

    run(scenario(), loop)


@on_each_loop
def test_server_without_a_host_listens_on_all_addresses(loop: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            server = await ends.far.start_server(echo)
            ports = {sock.getsockname()[1] for sock in server.sockets}
            assert len(server.sockets) == 2
            assert len(ports) == 1
            for host in (FAR_V4, FAR_V6):
                sock = await ends.near.connect_socket(host, min(ports))
                assert sock.getpeername()[0] == host
                sock.close()
            server.close()
            with pytest.raises(ConnectionRefusedError):
                await ends.near.connect_socket(FAR_V4, min(ports))

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_port_below_1024_needs_no_privileges(loop: str, version: int) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, FAR[version], 80):
            reader, writer = await ends.near.open_connection(FAR[version], 80)
            writer.write(b"GET")
            assert await reader.readexactly(3) == b"GET"
            writer.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_peers_reach_servers_of_this_end(loop: str, version: int) -> None:
    """The other side begins the streams and datagrams."""
    near = {4: NEAR_V4, 6: NEAR_V6}[version]

    async def scenario() -> None:
        async with tunnels() as ends, await ends.near.start_server(echo, near, 80):
            # The far end learns the endpoint of this one from its first packet.
            await ends.near.ping(FAR[version])
            reader, writer = await ends.far.open_connection(near, 80, timeout=10)
            writer.write(b"from the peer")
            assert await reader.readexactly(13) == b"from the peer"
            writer.close()
            answering, _ = await ends.near.create_datagram_endpoint(
                lambda: Collect(answer=True), local_addr=(near, 7002)
            )
            asking, protocol = await ends.far.create_datagram_endpoint(Collect, remote_addr=(near, 7002))
            assert await protocol.answer_to(b"?") == b"?"
            asking.close()
            answering.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_create_connection_and_create_server_use_protocols(loop: str, version: int) -> None:
    class Shout(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            writing = cast(asyncio.Transport, transport)
            writing.write(str(transport.get_extra_info("peername")[0]).encode())
            writing.close()

    class Hear(asyncio.Protocol):
        def __init__(self) -> None:
            self.heard = b""
            self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.heard += data

        def connection_lost(self, error: Exception | None) -> None:
            self.ended.set_result(None)

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.create_server(Shout, FAR[version], 7001):
            transport, protocol = await ends.near.create_connection(Hear, FAR[version], 7001)
            await protocol.ended
            assert protocol.heard.decode() == {4: NEAR_V4, 6: NEAR_V6}[version]
            transport.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
@pytest.mark.parametrize("size", [1, 1300, 20_000], ids=["one byte", "one packet", "fragments"])
def test_datagrams_arrive_and_are_answered(loop: str, version: int, size: int) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            answering, _ = await ends.far.create_datagram_endpoint(
                lambda: Collect(answer=True), local_addr=(FAR[version], 7002)
            )
            transport, protocol = await ends.near.create_datagram_endpoint(Collect, remote_addr=(FAR[version], 7002))
            payload = os.urandom(size)
            assert await protocol.answer_to(payload) == payload
            transport.close()
            answering.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_connected_socket_is_an_ordinary_socket(loop: str, version: int) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7003):
            local = ({4: NEAR_V4, 6: NEAR_V6}[version], 40_000)
            sock = await ends.near.connect_socket(FAR[version], 7003, local_addr=local)
            with sock:
                assert type(sock) is socket.socket
                assert sock.gettimeout() == 0
                assert sock.getpeername()[:2] == (FAR[version], 7003)
                assert sock.getsockname()[:2] == local
                assert not os.get_inheritable(sock.fileno())
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await asyncio.get_running_loop().sock_sendall(sock, b"plain")
                assert await asyncio.get_running_loop().sock_recv(sock, 5) == b"plain"

    run(scenario(), loop)


@on_each_loop
def test_open_socket_is_bound_and_connected_by_the_caller(loop: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            listener = ends.far.socket(socket.AF_INET)
            with listener, ends.near.socket() as sock:
                listener.bind((FAR_V4, 7004))
                listener.listen()
                await asyncio.get_running_loop().sock_connect(sock, (FAR_V4, 7004))
                accepted, address = await asyncio.get_running_loop().sock_accept(listener)
                assert address[0] == NEAR_V4
                accepted.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_tls_checks_the_certificate_against_the_host(loop: str, version: int) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(FAR_V4, FAR_V6).configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=443, ssl=server_side):
            reader, writer = await ends.near.open_connection(FAR[version], 443, ssl=client_side, timeout=5)
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
            assert writer.get_extra_info("cipher")
            writer.close()
            with pytest.raises(ssl.SSLCertVerificationError):
                await ends.near.open_connection(
                    FAR[version], 443, ssl=client_side, server_hostname="other.example", timeout=5
                )

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_stream_is_upgraded_with_start_tls(loop: str, version: int) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("far.example").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_side)
        await echo(reader, writer)

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(upgrade, port=7005):
            reader, writer = await ends.near.open_connection(FAR[version], 7005)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_side, server_hostname="far.example")
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
            writer.close()

    run(scenario(), loop)


@on_each_loop
@on_each_family
def test_ping_returns_the_round_trip_time(loop: str, version: int) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            assert 0 < await ends.near.ping(FAR[version]) < 5
            assert 0 < await ends.near.ping(FAR[version], size=4000) < 5

    run(scenario(), loop)


def test_addresses_need_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the host was asked"))

    async def scenario() -> None:
        async with tunnels() as ends:
            (info,) = await ends.near.getaddrinfo(FAR_V6, 80)
            assert (info[0], info[4][:2]) == (socket.AF_INET6, (FAR_V6, 80))
            assert {info[4][0] for info in await ends.near.getaddrinfo(None, 80)} == {"0.0.0.0", "::"}

    run(scenario())


def test_tunnel_can_be_awaited_and_closed_twice() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            other = await wyrmhole.open(ends.near_text)
            assert not other.closed
            await asyncio.gather(other.close(), other.close())
            await other.close()
            assert other.closed

    run(scenario())


def test_stats_name_the_peer_and_count_bytes(device: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            assert next(iter(ends.near.stats().peers.values())).last_handshake is None
            await ends.near.ping(FAR_V4)
            stats = ends.near.stats()
            (peer,) = stats.peers.values()
            assert peer.name == "far"
            assert (stats.rx_bytes, stats.tx_bytes) == (peer.rx_bytes, peer.tx_bytes)
            assert peer.rx_bytes > 100
            assert peer.last_handshake is not None
            assert abs(peer.last_handshake - time.time()) < 60
            assert stats.stack == device

    run(scenario())


def test_repr_and_stats_contain_no_keys() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            private = ends.near.config.interface.private_key
            assert private is not None
            for shown in (repr(ends.near), repr(ends.near.peers), repr(ends.near.stack), repr(ends.near.config)):
                assert private.base64() not in shown

    run(scenario())
