"""The blocking twin: the same verbs for threads, which do not block each other."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

import wyrmhole
import wyrmhole.sync
from tests.support.tunnels import FAR_V4, FAR_V6, NEAR_OPTIONS, NEAR_V4, NOBODY_V4, far_config, generate, near_config

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("device")]


@contextmanager
def tunnels() -> Iterator[tuple[wyrmhole.sync.Tunnel, wyrmhole.sync.Tunnel]]:
    near_key, far_key = generate(), generate()
    with wyrmhole.sync.open(far_config(far_key, near_key)) as far:
        text = near_config(near_key, far_key, far.stats().listen_port)
        with wyrmhole.sync.open(text, **NEAR_OPTIONS) as near:
            yield near, far


@contextmanager
def echoing(far: wyrmhole.sync.Tunnel, address: tuple[str, int]) -> Iterator[None]:
    """Start a thread that serves connections one after the other until the listener ends."""
    listener = far.create_server(address)
    accepted: list[socket.socket] = []
    ended = threading.Event()

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
                accepted.append(sock)
                with sock:
                    while not ended.is_set() and (data := sock.recv(65536)):
                        sock.sendall(data)
            except OSError:
                if ended.is_set():
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        # The near end may disappear silently, because its last packets can be lost with its tunnel.
        for sock in accepted:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.mark.parametrize("host", [FAR_V4, FAR_V6])
def test_blocking_connection_and_server(host: str) -> None:
    with tunnels() as (near, far), echoing(far, (host, 7000)):
        with near.create_connection((host, 7000), timeout=5) as sock:
            assert sock.gettimeout() == 5
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
        with near.create_connection((host, 7000)) as sock:
            assert sock.gettimeout() is None


def test_connected_socket_is_blocking_and_belongs_to_the_caller() -> None:
    with tunnels() as (near, far), echoing(far, (FAR_V4, 7000)), near.socket() as sock:
        sock.settimeout(5)
        sock.connect((FAR_V4, 7000))
        assert sock.getsockname()[0] == NEAR_V4
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_errors_are_those_of_socket() -> None:
    with tunnels() as (near, _):
        with pytest.raises(ConnectionRefusedError):
            near.create_connection((FAR_V4, 9), timeout=5)
        with pytest.raises(TimeoutError):
            near.create_connection((NOBODY_V4, 9), timeout=0.2)
        with pytest.raises(socket.gaierror):
            near.create_connection(("db.internal", 9), timeout=5)
        with pytest.raises(TimeoutError):
            near.ping(NOBODY_V4, timeout=0.2)


def test_waiting_thread_does_not_block_others() -> None:
    with tunnels() as (near, far), echoing(far, (FAR_V4, 7000)), ThreadPoolExecutor(4) as threads:
        silent = [threads.submit(near.create_connection, (NOBODY_V4, 9), 20.0) for _ in range(3)]
        with near.create_connection((FAR_V4, 7000), timeout=5) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert near.ping(FAR_V4) > 0
        assert not any(each.done() for each in silent)
        near.close()
        for each in silent:
            with pytest.raises(OSError, match=r"abort|closed"):
                each.result(timeout=10)


def test_all_other_verbs_work(device: str) -> None:
    with tunnels() as (near, far), echoing(far, (FAR_V4, 7000)):
        events: queue.Queue[object] = queue.Queue()
        following = near.events()
        thread = threading.Thread(target=lambda: deque(map(events.put, following), maxlen=0))
        thread.start()
        assert near.wait_handshake(timeout=10).name == "far"
        assert near.stats().stack == device
        assert [peer.name for peer in near.peers.values()] == ["far"]
        added = near.peers.add(generate().public_key(), allowed_ips=["10.67.0.0/24"], name="other")
        assert added.stats().allowed_ips == ("10.67.0.0/24",)
        assert len(near.peers) == 2
        near.peers.remove(added.public_key)
        assert len(near.peers) == 1
        assert near.getaddrinfo(FAR_V4, 80)[0][4] == (FAR_V4, 80)
        near.reload()
        with (
            near.forward("127.0.0.1:0", f"{FAR_V4}:7000") as service,
            socket.create_connection(service.addresses[0], 5) as sock,
        ):
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        near.close()
        thread.join(10)
        assert not thread.is_alive(), "events end with the tunnel"
        assert isinstance(events.get_nowait(), wyrmhole.Handshake)


def test_closed_tunnel_and_fork_raise_a_clear_error() -> None:
    with tunnels() as (near, _):
        child = os.fork()
        if child == 0:
            try:
                near.ping(FAR_V4)
            except wyrmhole.TunnelError as error:
                os._exit(0 if "fork" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        near.close()
        near.close()
        with pytest.raises(wyrmhole.TunnelError, match="closed"):
            near.create_connection((FAR_V4, 80))
        with pytest.raises(wyrmhole.TunnelError, match="closed"):
            near.stats()


def test_failed_open_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(wyrmhole.ConfigFileError, match="Address"):
        wyrmhole.sync.open(f"[Interface]\nPrivateKey = {generate().base64()}\n")
    assert threading.active_count() == before
