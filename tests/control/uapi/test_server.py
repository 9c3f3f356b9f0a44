"""The UAPI server with real sockets and a device that only records: no client delays another."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import pytest

from tests.control.uapi.fakes import TAKEN_PORT, Client, FakeDevice, serving
from wyrmhole.control.uapi import server as uapi_server
from wyrmhole.control.uapi.format import iter_get
from wyrmhole.control.uapi.socket import UapiListener
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus
from wyrmhole.net import file_watch

P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "wg0.sock")


# Conversations


@on_a_loop
async def test_get_and_set_are_answered(tmp_path: Path, path: str) -> None:
    device = FakeDevice()
    async with serving(tmp_path, device):
        client = await Client.connect(path)
        assert await client.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
        assert await client.ask("set=1\nlisten_port=2\n\n") == "errno=0\n\n"
        assert await client.ask("get=1\n\n") == "listen_port=2\nerrno=0\n\n"
    assert device.changes == [DeviceChange(listen_port=2)]


@on_a_loop
async def test_get_right_after_a_set_is_answered_after_it(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()):
        client = await Client.connect(path)
        assert await client.ask("set=1\nlisten_port=2\n\nget=1\n\n") == "errno=0\n\n"
        assert await client.read_reply() == "listen_port=2\nerrno=0\n\n"


@on_a_loop
async def test_refused_set_returns_errno_and_keeps_the_connection(tmp_path: Path, path: str) -> None:
    device = FakeDevice()
    async with serving(tmp_path, device):
        client = await Client.connect(path)
        assert await client.ask("set=1\nlisten_port=2\nlisten_port=no\n\n") == "errno=-22\n\n"
        assert await client.ask("set=1\nno equals sign\n\n") == "errno=-71\n\n"
        assert await client.ask(f"set=1\nlisten_port={TAKEN_PORT}\n\n") == "errno=-98\n\n"
        assert await client.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
    assert device.changes == []


@on_a_loop
async def test_exception_of_the_device_fails_one_operation(tmp_path: Path, path: str) -> None:
    device = FakeDevice()
    async with serving(tmp_path, device):
        client = await Client.connect(path)
        device.breaks = True
        assert await client.ask("set=1\n\n") == "errno=-5\n\n"
        device.breaks = False
        assert await client.ask("set=1\n\n") == "errno=0\n\n"


@pytest.mark.parametrize("rubbish", [b"x" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"\0\n", b"\n"])
def test_garbage_is_answered_and_the_connection_closed(tmp_path: Path, path: str, rubbish: bytes) -> None:

    @on_a_loop
    async def run() -> None:
        async with serving(tmp_path, FakeDevice()):
            client = await Client.connect(path)
            assert await client.ask(rubbish.decode()) == "errno=-71\n\n"
            assert await client.is_closed()

    run()


@on_a_loop
async def test_truncated_set_is_not_applied(tmp_path: Path, path: str) -> None:
    device = FakeDevice()
    async with serving(tmp_path, device):
        client = await Client.connect(path)
        await client.write(b"set=1\nlisten_port=2\n")
        client.writer.write_eof()
        assert await client.read_reply() == "errno=-71\n\n"
        assert await client.is_closed()
    assert device.changes == []


@on_a_loop
async def test_client_that_half_closes_gets_its_answer(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()):
        client = await Client.connect(path)
        await client.write(b"get=1\n\n")
        client.writer.write_eof()
        assert await client.read_reply() == "listen_port=1\nerrno=0\n\n"
        assert await client.is_closed()


@on_a_loop
async def test_large_get_arrives_whole(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(peers=10_000)):
        client = await Client.connect(path)
        await client.write(b"get=1\n\n")
        lines = [await asyncio.wait_for(client.reader.readline(), 10) for _ in range(1 + 10_000 * 9 + 2)]
        assert sum(line.startswith(b"public_key=") for line in lines) == 10_000
        assert lines[-2:] == [b"errno=0\n", b"\n"]


@on_a_loop
async def test_get_is_one_snapshot_during_a_set(tmp_path: Path, path: str) -> None:
    device = FakeDevice(peers=10_000)
    async with serving(tmp_path, device):
        reading, writing = await Client.connect(path), await Client.connect(path)
        await reading.write(b"get=1\n\n")
        head = await reading.reader.readline()
        device.peers = ()
        assert await writing.ask("set=1\nlisten_port=2\n\n") == "errno=0\n\n"
        lines = [head] + [await asyncio.wait_for(reading.reader.readline(), 10) for _ in range(10_000 * 9 + 2)]
        assert lines[0] == b"listen_port=1\n"
        assert lines[-2:] == [b"errno=0\n", b"\n"]


# Slow and silent clients


@on_a_loop
async def test_client_in_the_middle_of_a_set_delays_no_other(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()) as server:
        slow, other = await Client.connect(path), await Client.connect(path)
        await slow.write(b"set=1\nlisten_port=3\n")
        assert await other.ask("set=1\nlisten_port=2\n\n") == "errno=0\n\n"
        await slow.write(b"\n")
        assert await slow.read_reply() == "errno=0\n\n"
        await slow.write(b"set=1\n")
        await server.close()


@on_a_loop
async def test_client_that_does_not_read_delays_no_other(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(peers=5000)):
        deaf, other = await Client.connect(path), await Client.connect(path)
        deaf.writer.write(b"get=1\n\n" * 100)
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        assert await other.ask("set=1\nlisten_port=2\n\n") == "errno=0\n\n"


@on_a_loop
async def test_client_that_never_reads_is_dropped(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then, the reply is produced only as fast as the client reads."""
    made = 0

    def counting(status: DeviceStatus) -> Iterator[bytes]:
        nonlocal made
        for chunk in iter_get(status):
            made += len(chunk)
            yield chunk

    monkeypatch.setattr(uapi_server, "iter_get", counting)
    device = FakeDevice(peers=5000)
    async with serving(tmp_path, device, stall_seconds=0.05) as server:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(path)
            deaf.sendall(b"get=1\n\n")
            await until(lambda: bool(server._clients))
            await until(lambda: not server._clients)
    assert 0 < made < len(b"".join(iter_get(device.status())))


@on_a_loop
async def test_client_that_stops_in_the_middle_is_dropped(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(), stall_seconds=0.05):
        client = await Client.connect(path)
        await client.write(b"set=1\nlisten_port=2")
        assert await client.is_closed()


@on_a_loop
async def test_client_may_be_silent_between_operations(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(), stall_seconds=0.05):
        silent, stalled = await Client.connect(path), await Client.connect(path)
        await silent.ask("get=1\n\n")
        await stalled.write(b"get=1\n")
        assert await stalled.is_closed()
        assert await silent.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"


@on_a_loop
async def test_many_clients_are_served_at_once(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()):
        clients = [await Client.connect(path) for _ in range(64)]
        replies = await asyncio.gather(*(client.ask("get=1\n\n") for client in clients))
        assert set(replies) == {"listen_port=1\nerrno=0\n\n"}


@on_a_loop
async def test_client_above_the_limit_waits_until_another_ends(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(), max_clients=3) as server:
        first, *others = [await Client.connect(path) for _ in range(3)]
        for client in [first, *others]:
            await client.ask("get=1\n\n")
        newest = await Client.connect(path)
        await newest.write(b"get=1\n\n")
        await until(lambda: server._pause is not None)
        for client in [first, *others]:
            assert await client.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
        assert len(server._clients) == 3
        first.writer.close()
        assert await newest.read_reply() == "listen_port=1\nerrno=0\n\n"


@on_a_loop
async def test_idle_client_makes_room_for_the_next(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(), max_clients=3, idle_seconds=0.05) as server:
        idle = await Client.connect(path)
        begun = [await Client.connect(path) for _ in range(2)]
        for client in begun:
            await client.write(b"set=1\nlisten_port=2\n")
        await until(lambda: sum(not client.parser.is_between_operations for client in server._clients) == 2)
        newest = await Client.connect(path)
        assert await newest.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
        assert await idle.is_closed()
        for client in begun:
            assert await client.ask("\n") == "errno=0\n\n", "an operation that has begun is completed"


@on_a_loop
async def test_all_waiting_clients_are_served(tmp_path: Path, path: str) -> None:
    """Four times the allowed number of clients do 20 sets and gets each; no connection is closed early."""

    async def converse(number: int) -> None:
        client = await Client.connect(path)
        for turn in range(20):
            assert await client.ask(f"set=1\npublic_key={number:064x}\n\n") == "errno=0\n\n", turn
            assert await client.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n", turn
        client.writer.close()

    device = FakeDevice()
    async with serving(tmp_path, device, max_clients=16):
        await asyncio.gather(*(converse(number) for number in range(64)))
    assert len(device.changes) == 64 * 20


@pytest.mark.parametrize("text", ["set=1\nlisten_port=x\n\n", "set=1\nx\n\n", f"set=1\nlisten_port={TAKEN_PORT}\n\n"])
@on_a_loop
async def test_refused_set_is_logged_as_an_error(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    async with serving(tmp_path, FakeDevice()):
        await (await Client.connect(path)).ask(text)
    (record,) = [record for record in caplog.records if "refused" in record.getMessage()]
    assert record.levelno == logging.ERROR


@on_a_loop
async def test_connection_reset_by_a_client_is_harmless(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice(peers=5000)) as server:
        for request in (b"get=1\n\n" * 20, b"set=1\nlisten_port=2\n", b"x", b""):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(path)
                rude.sendall(request)
        polite = await Client.connect(path)
        await polite.ask("set=1\n\n")
        await until(lambda: len(server._clients) == 1)


@on_a_loop
async def test_other_users_are_rejected(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uapi_server, "_peer_uid", lambda accepted: os.geteuid() + 12345)
    async with serving(tmp_path, FakeDevice()):
        client = await Client.connect(path)
        assert await client.is_closed()


@on_a_loop
async def test_credentials_of_a_client_are_those_of_its_process(tmp_path: Path, path: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert uapi_server._peer_uid(ours) == os.geteuid()


@on_a_loop
async def test_client_is_refused_when_descriptors_run_out(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()):
        clients = [await Client.connect(path) for _ in range(3)]
        await asyncio.gather(*(client.ask("get=1\n\n") for client in clients))
        late = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            for one in late:
                one.setblocking(False)
                one.connect(path)
            answers = [await asyncio.get_running_loop().sock_recv(one, 100) for one in late]
            assert answers == [b"errno=-24\n\n"] * 3
            assert await clients[0].ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in late:
                one.close()
        assert await (await Client.connect(path)).ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"


@on_a_loop
async def test_without_a_spare_descriptor_accepting_pauses(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uapi_server, "_open_spare", lambda: None)
    monkeypatch.setattr(uapi_server, "ACCEPT_PAUSE_SECONDS", 0.01)
    async with serving(tmp_path, FakeDevice()) as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as late:
            late.setblocking(False)
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                late.connect(path)
                await until(lambda: server._pause is not None)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await asyncio.get_running_loop().sock_sendall(late, b"get=1\n\n")
            assert await asyncio.get_running_loop().sock_recv(late, 100) == b"listen_port=1\nerrno=0\n\n"


# The socket's file


@on_a_loop
async def test_chmod_and_chown_of_the_socket_file_are_ignored(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()) as server:
        os.chmod(path, 0o600)
        os.chown(path, os.getuid(), os.getgid())
        client = await Client.connect(path)
        assert await client.ask("get=1\n\n") == "listen_port=1\nerrno=0\n\n"
        assert not server._ended.is_set()


@pytest.mark.parametrize("has_inotify", [True, False])
@pytest.mark.parametrize("method", ["unlink", "rename", "replace"])
def test_removal_of_the_socket_file_ends_the_server(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch, method: str, has_inotify: bool
) -> None:
    if not has_inotify:
        monkeypatch.setattr(file_watch, "_open_inotify", refuse)
        monkeypatch.setattr(file_watch, "FALLBACK_SECONDS", 0.01)
    other = tmp_path / "other"
    other.touch()
    steps = {
        "unlink": lambda: os.unlink(path),
        "rename": lambda: os.rename(path, tmp_path / "elsewhere"),
        "replace": lambda: os.replace(other, path),
    }

    @on_a_loop
    async def run() -> None:
        async with serving(tmp_path, FakeDevice()) as server:
            steps[method]()
            await server.wait_ended()
        assert os.path.exists(path) == (method == "replace")

    run()


def refuse(path: str) -> int:
    raise OSError("no inotify here")


@on_a_loop
async def test_file_removed_before_the_start_ends_the_server(tmp_path: Path, path: str) -> None:
    server = uapi_server.UapiServer(FakeDevice(), UapiListener.create("wg0", str(tmp_path)))
    os.unlink(path)
    server.start()
    await server.wait_ended()
    await server.close()


@on_a_loop
async def test_close_drops_clients_and_removes_the_file(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, FakeDevice()) as server:
        client = await Client.connect(path)
        await client.ask("get=1\n\n")
        await server.close()
        await server.close()
        assert await client.is_closed()
        assert not os.path.exists(path)


@on_a_loop
async def test_server_that_never_started_can_be_closed(tmp_path: Path, path: str) -> None:
    server = uapi_server.UapiServer(FakeDevice(), UapiListener.create("wg0", str(tmp_path)))
    await server.close()
    assert not os.path.exists(path)


# Logs


@on_a_loop
async def test_refusal_is_logged_without_the_value(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "5ec2e7" * 10 + "zzzz"
    with caplog.at_level(logging.DEBUG, "wyrmhole"):
        async with serving(tmp_path, FakeDevice()):
            client = await Client.connect(path)
            assert await client.ask(f"set=1\nprivate_key={secret}\n\n") == "errno=-22\n\n"
    assert "private_key has a bad value" in caplog.text
    assert "5ec2e7" not in caplog.text


async def until(holds: Callable[[], bool]) -> None:
    """Run the loop until the condition holds. The deadline of the test limits the wait."""
    while not holds():
        await asyncio.sleep(0.001)
