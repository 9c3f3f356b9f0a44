"""Optional kernel features: destroying sockets (CONFIG_INET_DIAG_DESTROY), and BBR."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.tunnels import FAR, FAR_V4, NOBODY_V4, Collect, echo, on_each_loop, run, tunnels
from wyrmhole.library.stacks.namespace import ORPHAN_KEEPALIVE, ORPHAN_TIMEOUT_MS
from wyrmhole.net.sock_diag import SockDiag

pytestmark = pytest.mark.network

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@pytest.fixture
def cannot_end_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer like a kernel without the option."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(SockDiag, "destroy", refuse)
    monkeypatch.setattr(SockDiag, "destroy_all", refuse)


@pytest.mark.usefixtures("cannot_end_sockets")
@on_each_loop
def test_sockets_are_shut_down_if_they_cannot_be_destroyed(loop: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, _ = await ends.near.open_connection(FAR_V4, 7000)
            idle = await ends.near.connect_socket(FAR[6], 7000)
            waiting = asyncio.ensure_future(ends.near.connect_socket(NOBODY_V4, 80))
            reading = asyncio.ensure_future(reader.read(1))
            await ends.near.create_datagram_endpoint(Collect, remote_addr=(FAR_V4, 7000))
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await ends.near.close()
                assert await reading == b""
                with pytest.raises(OSError, match=r"reset|abort|closed|pipe"):
                    await waiting
            with idle:
                assert idle.recv(1) == b""
                with pytest.raises(BrokenPipeError):
                    idle.send(b"x")

    run(scenario(), loop)


@pytest.mark.usefixtures("cannot_end_sockets")
def test_unknown_sockets_time_out_if_they_cannot_be_destroyed() -> None:
    """One socket was accepted, one made in advance. Without keepalive probes an idle connection would never end."""

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            listener = ends.near.socket()
            with listener, await ends.near.connect_socket(FAR_V4, 7000) as connected:
                listener.bind(("10.66.0.1", 7001))
                listener.listen()
                begun = await ends.far.connect_socket("10.66.0.1", 7001)
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
                with begun, accepted:
                    for sock in (connected, accepted):
                        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ORPHAN_TIMEOUT_MS
                        for option, seconds in ORPHAN_KEEPALIVE.items():
                            assert sock.getsockopt(socket.IPPROTO_TCP, option) == seconds

    run(scenario())


def test_no_keepalive_probes_if_sockets_can_be_destroyed() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            with await ends.near.connect_socket(FAR_V4, 7000) as sock:
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    run(scenario())


def test_bbr_is_used_if_it_is_loaded() -> None:
    loaded = "bbr" in AVAILABLE.read_text().split()

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            assert ends.near.stack.traits.congestion == ("bbr" if loaded else "")
            for version in (4, 6):
                with await ends.near.connect_socket(FAR[version], 7000) as sock:
                    assert (congestion_of(sock) == "bbr") == loaded

    run(scenario())


def test_default_congestion_control_is_kept_without_bbr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.library.stacks.namespace._BBR", "none such")
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            assert ends.near.stack.traits.congestion == ""
            with await ends.near.connect_socket(FAR_V4, 7000) as sock:
                assert congestion_of(sock) == default

    run(scenario())


def congestion_of(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
