"""The client of the UAPI socket against our server, and against daemons that misbehave."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.uapi.fakes import TAKEN_PORT, FakeDevice
from wyrmhole.control.uapi import client
from wyrmhole.control.uapi.client import NoSuchInterface
from wyrmhole.control.uapi.format import emit_get, emit_set
from wyrmhole.control.uapi.server import UapiServer
from wyrmhole.control.uapi.socket import UapiListener
from wyrmhole.control.uapi.status import DropsReader, parse_get
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus
from wyrmhole.errors import DeviceError, UapiError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

STATUS = DeviceStatus(
    "wg0",
    PrivateKey(bytes(range(32))),
    51820,
    7,
    0,
    (
        PeerStatus(
            PublicKey(bytes([1]) * 32),
            PresharedKey(bytes([2]) * 32),
            Endpoint("2001:db8::1", 5),
            (12, 34),
            56,
            78,
            25,
            (Prefix.parse("10.0.0.0/8"), Prefix.parse("fd00::/64")),
        ),
        PeerStatus(PublicKey(bytes([3]) * 32), PresharedKey(bytes(32)), None, (0, 0), 0, 0, 0, ()),
    ),
)


def test_a_reply_is_read_as_it_was_written() -> None:
    assert parse_get("wg0", emit_get(STATUS).decode().splitlines()) == STATUS


def test_keys_of_other_versions_are_passed_over() -> None:
    lines = emit_get(STATUS).decode().replace("public_key", "colour=blue\npublic_key").splitlines()
    assert parse_get("wg0", ["future=1", *lines]) == STATUS


@pytest.mark.parametrize("line", ["listen_port=x", "private_key=00", "public_key=zz", "fwmark=" + "9" * 30])
def test_a_value_that_is_none_is_refused_without_being_repeated(line: str) -> None:
    with pytest.raises(UapiError) as caught:
        parse_get("wg0", [line])
    assert line.partition("=")[2] not in str(caught.value)


def test_ours_is_asked_and_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        device = FakeDevice(peers=300)
        listener = UapiListener.create("wg0", str(tmp_path))
        server = UapiServer(device, listener)
        server.start()
        try:
            status = await asyncio.to_thread(client.get, "wg0", str(tmp_path))
            assert len(status.peers) == 300 and status.peers == device.peers
            await asyncio.to_thread(client.apply, "wg0", DeviceChange(listen_port=5), str(tmp_path))
            assert device.port == 5
            with pytest.raises(UapiError) as caught:
                change = DeviceChange(listen_port=TAKEN_PORT)
                await asyncio.to_thread(client.apply, "wg0", change, str(tmp_path))
            assert caught.value.errno_value == errno.EADDRINUSE
            assert await asyncio.to_thread(client.interfaces, str(tmp_path)) == ["wg0"]
        finally:
            server.stop()
            await server.close()
            listener.close()

    asyncio.run(scenario())


def test_drops_are_read_as_they_were_written(tmp_path: Path) -> None:
    peers = {PublicKey(number.to_bytes(32, "big")): {"replayed": number, "bad_source": 1} for number in range(1, 300)}

    async def scenario() -> None:
        device = FakeDevice(peers=300)
        device.drops = DropCounts({"bad_mac1": 1 << 40, "not_ip": 2}, peers)
        listener = UapiListener.create("wg0", str(tmp_path))
        server = UapiServer(device, listener)
        server.start()
        try:
            assert await asyncio.to_thread(client.drops, "wg0", str(tmp_path)) == device.drops
            device.drops = DropCounts({}, {})
            assert await asyncio.to_thread(client.drops, "wg0", str(tmp_path)) == device.drops
        finally:
            server.stop()
            await server.close()
            listener.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "reply", [b"", b"errno=-71\n\n", b"errno=22\n\n", b"drop=x\nerrno=0\n\n", b"drop=\x1b 1\nerrno=0\n\n"]
)
def test_a_daemon_without_drops_does_not_tell(tmp_path: Path, reply: bytes) -> None:
    """wireguard-go closes the connection."""

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(reply)

    with daemon(tmp_path, answer) as folder:
        assert client.drops("wg0", folder) is None


def test_drops_that_fail_for_another_reason_are_an_error(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"errno=-5\n\n")

    with daemon(tmp_path, answer) as folder, pytest.raises(UapiError, match="Input/output"):
        client.drops("wg0", folder)


def test_drops_of_other_versions_are_kept_and_other_keys_passed_over() -> None:
    reader = DropsReader("wg0")
    for line in ("drop=from_the_future 3", "oddity=x 1", "future=1"):
        reader.add_line(line)
    assert reader.finish() == DropCounts({"from_the_future": 3}, {})


@contextmanager
def daemon(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A daemon whose only connection is served by `answer`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "wg0.sock"))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(folder)
    finally:
        thread.join(20)
        listener.close()


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (b"", "does not speak the UAPI"),
        (b"HTTP/1.1 400\r\n\r\n", "does not speak the UAPI"),
        (b"listen_port=5\n", "does not speak the UAPI"),
        (b"x" * 10000, "does not speak the UAPI"),
        (b"errno=-13\n\n", "refused: Permission denied"),
        (b"errno=22\n\n", "refused: Invalid argument"),
        ("errno=²\n\n".encode(), "does not speak the UAPI"),
        (b"errno=--22\n\n", "does not speak the UAPI"),
        (b"listen_port=99999999999999999999999\nerrno=0\n\n", "invalid value for listen_port"),
    ],
)
def test_a_daemon_that_talks_nonsense(tmp_path: Path, reply: bytes, part: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(reply)

    with daemon(tmp_path, answer) as folder, pytest.raises(UapiError, match=part):
        client.get("wg0", folder)


def test_a_change_of_many_pieces_arrives_whole(tmp_path: Path) -> None:
    """What is written is longer than one piece, and its end is in none of the first two."""
    peers = tuple(PeerChange(PublicKey(number.to_bytes(32, "big"))) for number in range(8000))
    expected = emit_set(DeviceChange(peers=peers))
    assert len(expected) > 2 * client._CHUNK and len(expected) % client._CHUNK
    received = bytearray()

    def answer(connection: socket.socket) -> None:
        connection.settimeout(20)
        while not received.endswith(b"\n\n"):
            data = connection.recv(1 << 16)
            if not data:
                return
            received.extend(data)
        connection.sendall(b"errno=0\n\n")

    with daemon(tmp_path, answer) as folder:
        client.apply("wg0", DeviceChange(peers=peers), folder)
    assert bytes(received) == expected


def test_a_daemon_that_is_silent_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        done.wait(20)

    with daemon(tmp_path, answer) as folder:
        with pytest.raises(DeviceError, match="does not answer"):
            client.get("wg0", folder)
        done.set()


def test_a_reply_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_REPLY", 1000)

    def babble(connection: socket.socket) -> None:
        connection.recv(100)
        try:
            while True:
                connection.sendall(b"listen_port=5\n" * 1000)
        except OSError:
            return

    with daemon(tmp_path, babble) as folder, pytest.raises(UapiError, match="does not speak"):
        client.get("wg0", folder)


def test_a_daemon_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait would be short, and their number without end."""
    monkeypatch.setattr(client, "_CHUNK", 1)

    def drip(connection: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\n\n"):
            request += connection.recv(1)
        try:
            connection.sendall(b"listen_port=5\n" * 1000)
            connection.recv(100)
        except OSError:
            return

    with daemon(tmp_path, drip) as folder, pytest.raises(DeviceError, match="pieces of a few bytes"):
        client.get("wg0", folder)


def test_who_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchInterface, match="no daemon listens"):
        client.get("nobody0", str(tmp_path))
    with pytest.raises(NoSuchInterface, match="not a valid interface name"):
        client.get("../../etc/x", str(tmp_path))
    (tmp_path / "file0.sock").touch()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale0.sock"))
    stale.close()
    with pytest.raises(NoSuchInterface, match="no daemon listens"):
        client.get("stale0", str(tmp_path))
    assert client.interfaces(str(tmp_path)) == []
    assert (tmp_path / "stale0.sock").exists(), "it is not a reader's to remove"
    assert client.interfaces(str(tmp_path / "nowhere")) == []
