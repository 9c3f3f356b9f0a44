"""Slow, malformed or many clients of the UAPI, while packets pass."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack

import pytest

from tests.chaos.scene import Record, Scene, count
from tests.netns.host import until
from tests.netns.lab import Lab
from tests.netns.node import Key

pytestmark = pytest.mark.network


def connect(scene: Scene, clients: ExitStack) -> socket.socket:
    client = clients.enter_context(socket.socket(socket.AF_UNIX))
    client.settimeout(10)
    client.connect(str(scene.one.socket))
    return client


def answer(client: socket.socket) -> bytes:
    """Receive one complete answer."""
    received = b""
    while not received.endswith(b"\n\n"):
        part = client.recv(1 << 16)
        if not part:
            break
        received += part
    return received


def test_64_clients_at_once(lab: Lab, engine: str, record: Record) -> None:
    scene, rounds = Scene.set(lab, engine), count(100, 5)
    with scene.stream() as stream, ExitStack() as stack:
        clients = [connect(scene, stack) for _ in range(64)]
        slowest = 0.0
        for _ in range(rounds):
            started = time.monotonic()
            for number, client in enumerate(clients):
                client.sendall(b"get=1\n\n" if number % 2 else b"set=1\npersistent_keepalive_interval=0\n\n")
            answers = [answer(client) for client in clients]
            slowest = max(slowest, time.monotonic() - started)
            assert all(b"errno=0\n\n" in each for each in answers[1::2])
            assert all(each.startswith(b"errno=") for each in answers[::2])
        stream.flow()
    assert stream.lost == 0
    record(
        "64 UAPI clients at once", f"all are served; the slowest round took {slowest * 1000:.0f} ms",
        times=rounds, lost=stream.lost_text,
    )  # fmt: skip


def test_slow_and_malformed_clients(lab: Lab, engine: str, record: Record) -> None:
    """Clients send single bytes, never read, send endless lines or NULs, or disconnect in the middle of a `set`."""
    scene, rounds = Scene.set(lab, engine), count(20, 2)
    with scene.stream() as stream, ExitStack() as stack:
        for _ in range(20):
            scene.one.set("peer", Key.generate().public, "allowed-ips", "10.9.9.9/32")
        for _ in range(rounds):
            slow = connect(scene, stack)
            half = connect(scene, stack)
            half.sendall(b"set=1\nprivate_key=" + b"0" * 64 + b"\n")
            deaf = connect(scene, stack)
            deaf.setblocking(False)
            for _ in range(2000):
                try:
                    deaf.send(b"get=1\n\n")
                except OSError:
                    break
            for malformed in (b"\0" * 100_000, b"get=1\n\xff\xfe\n\n", b"set=1\n" + b"a" * 100_000, os.urandom(10_000)):
                send(connect(scene, stack), malformed)
            for byte in b"get=1\n\n":
                slow.send(bytes((byte,)))
            assert b"errno=0\n\n" in answer(slow)
            half.close()
            until(lambda: scene.one.show("listen-port") == "51820", "the next client is served")
        assert scene.one.show("public-key") == scene.one.key.public, "an incomplete `set` was applied"
        stream.flow()
    assert stream.lost == 0
    record(
        "slow and malformed UAPI clients",
        "each is refused, or waits without delaying others; half a `set` changes nothing",
        times=rounds,
        lost=stream.lost_text,
    )


def send(client: socket.socket, data: bytes) -> None:
    """Send the data; the daemon may disconnect before the end."""
    try:
        client.sendall(data)
    except OSError:
        client.close()
