"""Limits on what unknown clients can use: descriptors, connections of a service, and UDP flows."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.loopback import Loopback, ask, echo, eventually, run, server, udp_client, udp_echo
from tests.support.tunnels import far_config, generate
from wyrmhole.engine.select import has_native
from wyrmhole.library.common import descriptors
from wyrmhole.library.common.descriptors import SERVICES, Budget, room
from wyrmhole.library.names.resolver import most_questions
from wyrmhole.library.proxy.proxy import proxy
from wyrmhole.library.proxy.socks5 import SocksReply
from wyrmhole.library.services.forward import forward
from wyrmhole.library.services.service import CONNECTION_COST, Limits, Service

USERS = {"ada": "lovelace"}
GREETING = b"\5\1\2"
PASSWORD = b"\1\3ada\x08lovelace"


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Limit this process to 256 descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def taken_by_others() -> Iterator[None]:
    """Reserve all descriptors that services may still use."""
    left = room() - SERVICES.taken
    assert SERVICES.take(left)
    try:
        yield
    finally:
        SERVICES.release(left)


async def silent(address: tuple[str, int], count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """Open connections that send nothing."""
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        await loop.sock_connect(sock, address)
        made.append(sock)
    return made


def close_all(*lists: list[socket.socket]) -> None:
    for sock in [sock for each in lists for sock in each]:
        sock.close()


def test_defaults_fit_into_the_limit_of_the_process(few_descriptors: int) -> None:
    limits = Limits()
    assert limits.connections * CONNECTION_COST <= room() <= few_descriptors // 2
    assert limits.flows <= room() and limits.most_unproven < limits.connections
    assert most_questions() * 2 * 3 <= few_descriptors - room()


def test_defaults_with_a_large_and_a_tiny_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "nofile", lambda: descriptors.UNLIMITED)
    assert (Limits().connections, Limits().flows) == (1024, 1024)
    monkeypatch.setattr(descriptors, "nofile", lambda: 16)
    assert room() == 8 and Limits().connections == 4 and Limits().most_unproven == 1


def test_budget_is_never_exceeded(few_descriptors: int) -> None:
    budget = Budget()
    assert budget.take(room()) and not budget.take(1)
    budget.release(1)
    assert budget.take(1) and budget.taken == room()


def test_clients_without_password_cannot_exhaust_descriptors(
    few_descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The sockets of this test count too, so it opens only a few at a time."""

    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0", users=USERS) as running:
            most = running.limits.most_unproven
            held = await silent(running.addresses[0], 3 * most)
            await eventually(lambda: running.unproven == most and running.connections <= most + 1)
            with socket.socket(), open("/etc/hostname"):
                pass
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(GREETING + PASSWORD)
            assert await reader.readexactly(4) == b"\5\2\1\0"
            writer.close()
            close_all(held)
        assert "closing silent connections early" in caplog.text
        assert caplog.text.count("closing silent connections early") == 1

    run(scenario())
    assert SERVICES.taken == 0


def test_source_with_most_connections_makes_room() -> None:
    async def scenario() -> None:
        limits = Limits(connections=64, unproven=4)
        async with await proxy(Loopback(), "127.0.0.1:0", limits=limits) as running:
            polite = await silent(running.addresses[0], 1, "127.0.0.7")
            await eventually(lambda: running.unproven == 1)
            greedy = await silent(running.addresses[0], 20, "127.0.0.8")
            await eventually(lambda: running.connections == 4)
            polite[0].send(b"\5\1\0")
            assert await asyncio.get_running_loop().sock_recv(polite[0], 2) == b"\5\0"
            close_all(polite, greedy)

    run(scenario())


def test_client_with_a_complete_request_is_never_closed_early() -> None:
    async def scenario() -> None:
        limits = Limits(connections=64, unproven=2)
        async with server(echo) as port, await proxy(Loopback(), "127.0.0.1:0", limits=limits) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
            await reader.readuntil(b"\r\n\r\n")
            assert running.unproven == 0
            held = await silent(running.addresses[0], 10)
            await eventually(lambda: running.unproven == 2)
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            writer.close()
            close_all(held)

    run(scenario())


def test_time_limit_of_a_greeting_is_not_extended_by_bytes() -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0", users=USERS, limits=Limits(greeting=2.0)) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            start = asyncio.get_running_loop().time()
            writer.write(GREETING)
            await reader.readexactly(2)
            assert await reader.read() == b""
            assert asyncio.get_running_loop().time() - start < 10
            writer.close()

    run(scenario())


def test_one_remote_address_gets_only_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.library.services.service.is_loopback", lambda host: host == "127.0.0.1")

    async def scenario() -> None:
        limits = Limits(connections=64, per_source=3)
        async with (
            server(echo) as port,
            await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}", limits=limits) as it,
        ):
            greedy = await silent(it.addresses[0], 10, "127.0.0.9")
            await eventually(lambda: it.connections == 3)
            own = await silent(it.addresses[0], 10)
            await eventually(lambda: it.connections == 13)
            close_all(greedy)
            await eventually(lambda: it.connections == 10)
            again = await silent(it.addresses[0], 1, "127.0.0.9")
            await eventually(lambda: it.connections == 11)
            close_all(own, again)

    run(scenario())


def test_services_share_the_descriptors_of_the_process(few_descriptors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.library.services.service.PAUSE", 0)

    async def scenario() -> None:
        async with server(echo) as port, await forward(Loopback(), "127.0.0.1:0", f"127.0.0.1:{port}") as it:
            held = await silent(it.addresses[0], 1)
            await eventually(lambda: it.connections == 1 and SERVICES.taken == 4)
            with taken_by_others():
                held += await silent(it.addresses[0], 3)
                await eventually(lambda: it.connections == 2)
            await eventually(lambda: it.connections == 4)
            close_all(held)

    run(scenario())
    assert SERVICES.taken == 0


def test_one_source_cannot_displace_flows_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.library.services.udp_flows.is_loopback", lambda _: False)

    async def scenario() -> None:
        limits = Limits(flows=8, per_source=2)
        async with udp_echo() as (port, seen):
            it = await forward(Loopback(), "127.0.0.1:0/udp", f"127.0.0.1:{port}", limits=limits)
            async with it:
                polite = udp_client(*it.addresses[0])
                assert await ask(polite, b"1") == b"re:1"
                for number in range(10):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        sock.setblocking(False)
                        sock.bind(("127.0.0.9", 0))
                        sock.connect(it.addresses[0])
                        assert await ask(sock, b"%d" % number) == b"re:%d" % number
                first = seen.seen[b"1"]
                assert await ask(polite, b"last") == b"re:last"
                assert len(it._parts[0]._flows) == 3  # type: ignore[attr-defined]
                assert seen.seen[b"last"] is not first
                polite.close()

    run(scenario())
    assert SERVICES.taken == 0


def test_udp_association_without_descriptors_is_refused(few_descriptors: int) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            await eventually(lambda: running.connections == 1)
            with taken_by_others():
                writer.write(b"\5\1\0" + b"\5\3\0\1" + bytes(6))
                answer = await reader.read()
            assert answer[:4] == bytes((5, 0, 5, SocksReply.GENERAL_FAILURE))
            writer.close()

    run(scenario())


def test_unexpected_exception_of_a_handler_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(sock: socket.socket) -> None:
        raise RuntimeError("not foreseen")

    async def scenario() -> None:
        service = Service("test", Limits())
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        service.listen(listener, fail)
        async with service:
            for _ in range(2):
                (sock,) = await silent(service.addresses[0], 1)
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
                sock.close()

    run(scenario())
    assert caplog.text.count("RuntimeError: not foreseen") == 2


# Out of descriptors

SHORT_OF_DESCRIPTORS = """
import asyncio, gc, os, resource, sys
import wyrmhole

def held():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def limit(soft):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 256))

async def main():
    text, engine = sys.stdin.read(), sys.argv[1]
    limit(256)
    await (await wyrmhole.open(text, engine=engine)).close()
    before = held()
    for spare in range(60):
        limit(before + spare)
        try:
            tunnel = await wyrmhole.open(text, engine=engine)
        except (wyrmhole.TunnelError, wyrmhole.ConfigError) as error:
            reason = str(error)
        else:
            await tunnel.close()
            print("opened with", spare)
            return
        limit(256)
        assert "ulimit -n" in reason, reason
        for _ in range(500):
            if held() <= before:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError(f"{held() - before} descriptors are left: {reason}")

asyncio.run(main())
"""


@pytest.mark.network
@pytest.mark.parametrize("engine", ["portable", "native"] if has_native() else ["portable"])
def test_open_that_runs_out_of_descriptors_leaks_none(engine: str) -> None:
    command = [sys.executable, "-c", SHORT_OF_DESCRIPTORS, engine]
    done = subprocess.run(command, input=far_config(generate(), generate()), capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("opened with"), done.stderr
