"""The client of the UAPI socket, with our server and with daemons that misbehave."""

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


def test_emitted_reply_is_read_back() -> None:
    assert parse_get("wg0", emit_get(STATUS).decode().splitlines()) == STATUS


def test_keys_of_other_versions_are_skipped() -> None:
    lines = emit_get(STATUS).decode().replace("public_key", "colour=blue\npublic_key").splitlines()
    assert parse_get("wg0", ["future=1", *lines]) == STATUS


@pytest.mark.parametrize("line", ["listen_port=x", "private_key=00", "public_key=zz", "fwmark=" + "9" * 30])
def test_invalid_value_is_refused_without_being_repeated(line: str) -> None:
    with pytest.raises(UapiError) as caught:
        parse_get("wg0", [line])
    assert line.partition("=")[2] not in str(caught.value)


def test_get_and_set_work_with_our_server(tmp_path: Path) -> None:
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


def test_emitted_drops_are_read_back(tmp_path: Path) -> None:
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
def test_get_drops_returns_none_if_the_daemon_lacks_them(tmp_path: Path, reply: bytes) -> None:
    """wireguard-go, for example, closes the connection."""

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(reply)

    with daemon(tmp_path, answer) as folder:
        assert client.drops("wg0", folder) is None


def test_drops_raise_any_other_error(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"errno=-5\n\n")

    with daemon(tmp_path, answer) as folder, pytest.raises(UapiError, match="Input/output"):
        client.drops("wg0", folder)


def test_unknown_drop_reasons_are_kept_and_unknown_keys_skipped() -> None:
    reader = DropsReader("wg0")
    for line in ("drop=from_the_future 3", "oddity=x 1", "future=1"):
        reader.add_line(line)
    assert reader.finish() == DropCounts({"from_the_future": 3}, {})


@contextmanager
def daemon(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a daemon whose only connection is served by `answer`."""
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
def test_malformed_replies_and_errors_of_a_daemon_raise(tmp_path: Path, reply: bytes, part: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(reply)

    with daemon(tmp_path, answer) as folder, pytest.raises(UapiError, match=part):
        client.get("wg0", folder)


def test_change_of_several_chunks_arrives_whole(tmp_path: Path) -> None:
    """The request is longer than two chunks, and its length is not a multiple of a chunk."""
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


def test_silent_daemon_ends_in_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        done.wait(20)

    with daemon(tmp_path, answer) as folder:
        with pytest.raises(DeviceError, match="does not answer"):
            client.get("wg0", folder)
        done.set()


def test_reply_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_reply_in_tiny_pieces_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is short, but without a limit there could be any number of them."""
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


def test_missing_daemon_invalid_name_and_stale_socket_raise(tmp_path: Path) -> None:
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
    assert (tmp_path / "stale0.sock").exists(), "only the next daemon may remove it"
    assert client.interfaces(str(tmp_path / "nowhere")) == []
