"""What is particular to `device="tun"`, in a network namespace of the test's own.

Every verb on it is in the tests of the verbs, which run on both kinds of tunnels (see the fixture `device`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

import wyrmhole
from tests.library.tunnels import FAR, echo, far_config, generate, near_config, on_each_family, run
from tests.net.namespaces import Namespace

pytestmark = pytest.mark.network


@pytest.fixture
def host() -> Iterator[Namespace]:
    host = Namespace()
    try:
        with host.entered():
            yield host
    finally:
        host.delete()


@on_each_family
def test_sockets_go_by_the_interface_and_by_nothing_else(host: Namespace, version: int) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far, await far.start_server(echo, port=7000):
            text = near_config(near_key, far_key, far.stats().listen_port)
            async with wyrmhole.open(text, device="tun", name="wyrtest") as near:
                assert "wyrtest" in host.ip("link")
                reader, writer = await near.open_connection(FAR[version], 7000, timeout=10)
                writer.write(b"by the interface")
                assert await reader.readexactly(16) == b"by the interface"
                sock = writer.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"wyrtest"
                assert await near.ping(FAR[version]) > 0
                with pytest.raises(OSError, match="No route"):
                    await near.connect_socket("10.99.0.1", 80, timeout=5)
                await near.close()
                with pytest.raises(ConnectionAbortedError):
                    await reader.read(1)
            assert "wyrtest" not in host.ip("link")

    run(scenario())


def test_a_name_that_is_taken_is_refused(host: Namespace) -> None:
    from wyrmhole.library.host_stack import HostStack

    first = HostStack.open("wyrtest")
    with pytest.raises(wyrmhole.TunnelError, match="wyrtest"):
        HostStack.open("wyrtest")
    first.close()
    first.close()


def test_other_sockets_of_the_host_are_left_alone(host: Namespace) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            from wyrmhole.library.host_stack import HostStack

            stack = HostStack.open("wyrtest")
            with (
                socket.create_server(("127.0.0.1", 0)) as listener,
                socket.create_connection(listener.getsockname()) as mine,
            ):
                stack.abort_all()
                stack.close()
                mine.sendall(b"!")
                assert listener.accept()[0].recv(1) == b"!"
            assert not far.closed

    run(scenario())
