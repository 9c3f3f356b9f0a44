"""A pytest fixture that gives each test a private network with a server inside, as an ordinary user.

usage: pytest examples/test_with_tunnel.py
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

import wyrmhole.sync
from wyrmhole.protocol.keys import PrivateKey


@pytest.fixture
def network() -> Iterator[tuple[wyrmhole.sync.Tunnel, wyrmhole.sync.Tunnel]]:
    """A client at 10.0.0.1 and a server at 10.0.0.2, each the other's peer."""
    client_key, server_key = PrivateKey(os.urandom(32)), PrivateKey(os.urandom(32))
    server_config = (
        f"[Interface]\nPrivateKey = {server_key.base64()}\nAddress = 10.0.0.2/24\n"
        f"[Peer]\nPublicKey = {client_key.public_key().base64()}\nAllowedIPs = 10.0.0.1/32\n"
    )
    with wyrmhole.sync.open(server_config) as server:
        client_config = (
            f"[Interface]\nPrivateKey = {client_key.base64()}\nAddress = 10.0.0.1/24\n"
            f"[Peer]\nPublicKey = {server_key.public_key().base64()}\nAllowedIPs = 10.0.0.2/32\n"
            f"Endpoint = 127.0.0.1:{server.stats().listen_port}\n"
        )
        with wyrmhole.sync.open(client_config) as client:
            yield client, server


def test_the_server_shouts(network: tuple[wyrmhole.sync.Tunnel, wyrmhole.sync.Tunnel]) -> None:
    client, server = network
    listener = server.create_server(("10.0.0.2", 80))

    def shout() -> None:
        sock, _ = listener.accept()
        sock.sendall(sock.recv(100).upper())
        sock.close()

    threading.Thread(target=shout, daemon=True).start()
    with client.create_connection(("10.0.0.2", 80), timeout=5) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"HELLO"
