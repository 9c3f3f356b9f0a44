"""Two tunnels with one private key: noticed on this host, and by the peer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import wyrmhole
from tests.library.one_key import HOLD, SHARED, warnings
from tests.support.tunnels import FAR_V4, far_config, generate, near_config, run, tunnels
from wyrmhole.library import one_key
from wyrmhole.library.one_key import claim

network = pytest.mark.network


def test_second_claim_in_this_process_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = generate().public_key()
    first = claim(key)
    claim(generate().public_key()).release()
    assert not warnings(caplog)
    second = claim(key)
    assert warnings(caplog) == [
        f"another tunnel of this process {SHARED} (public key {key.base64()}): a peer keeps one session per key, so "
        "each takes it from the other; share one tunnel, or give each its own key"
    ]
    second.release()
    first.release()
    first.release()
    claim(key).release()
    assert len(warnings(caplog)) == 1


def test_claim_of_another_process_is_reported_and_released(caplog: pytest.LogCaptureFixture) -> None:
    key = generate().public_key()
    command = [sys.executable, "-c", HOLD, key.raw.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for _ in range(one_key.BACKLOG // 2):
            claim(key).release()
        assert set(warnings(caplog)) == {
            line for line in warnings(caplog) if f"process {other.pid} on this host (" in line
        }
        other.send_signal(signal.SIGKILL)
    caplog.clear()
    claim(key).release()
    assert not warnings(caplog)


def test_claims_above_the_backlog_cause_warnings(caplog: pytest.LogCaptureFixture) -> None:
    key = generate().public_key()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, key.raw.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for _ in range(one_key.BACKLOG + 5):
            claim(key).release()
        other.kill()
    assert len(warnings(caplog)) == one_key.BACKLOG + 5
    assert "another process on this host" in warnings(caplog)[-1]


def test_fork_does_not_keep_the_key_of_its_parent(caplog: pytest.LogCaptureFixture) -> None:
    key = generate().public_key()
    held = claim(key)
    (readable, writable), (begun, begins) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(writable)
        os.write(begins, b"x")
        os.read(readable, 1)
        os._exit(0)
    os.read(begun, 1)
    held.release()
    claim(key).release()
    os.write(writable, b"x")
    os.waitpid(child, 0)
    for each in (readable, writable, begun, begins):
        os.close(each)
    assert not warnings(caplog)


@network
def test_tunnels_warn_once_and_both_work(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        text = near_config(near_key, far_key, 9)
        async with wyrmhole.open(text):
            assert not warnings(caplog)
            async with wyrmhole.open(text) as second:
                assert len(warnings(caplog)) == 1
                await second.reload(text.replace("[Peer]", "MTU = 1380\n[Peer]"))
                assert len(warnings(caplog)) == 1, "the same key as before"
                await second.reload(near_config(generate(), far_key, 9))
                async with wyrmhole.open(near_config(generate(), far_key, 9)) as third:
                    await third.reload(text)
                    assert len(warnings(caplog)) == 2
        caplog.clear()
        async with wyrmhole.open(text):
            assert not warnings(caplog), "nothing remains"
        async with tunnels():
            assert not warnings(caplog)

    caplog.set_level(logging.WARNING, "wyrmhole")
    run(scenario())


@network
def test_dropped_or_failed_tunnel_releases_its_key(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        text = near_config(generate(), generate(), 9)
        tunnel = await wyrmhole.open(text)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(ended.set)

        tunnel._life.when_ended(tell)
        with pytest.warns(ResourceWarning):
            del tunnel
        await ended.wait()
        taken = await wyrmhole.open(near_config(generate(), generate(), 9))
        port = taken.stats().listen_port
        with pytest.raises(wyrmhole.WyrmholeError):
            await wyrmhole.open(text.replace("[Peer]", f"ListenPort = {port}\n[Peer]"))
        await taken.close()
        async with wyrmhole.open(text):
            assert not warnings(caplog)

    run(scenario())


@network
def test_peer_of_two_clients_with_one_key_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    """The tunnel on the other side emits an event and logs a warning, both with the two endpoints."""

    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            text = near_config(near_key, far_key, far.stats().listen_port)
            async with wyrmhole.open(text) as first, wyrmhole.open(text) as second:
                following = far.events()
                # Without a receiver, the far kernel's port unreachable would end a later `send` with ECONNREFUSED.
                receiver, _ = await far.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(FAR_V4, 9))
                socks = {}
                for near in (first, second):
                    await near.wait_handshake(timeout=20)
                    socks[near.stats().listen_port] = await near.connect_socket(FAR_V4, 9, type=2)
                flapping = asyncio.ensure_future(first_flapping(following))
                for turn in range(12):
                    port = list(socks)[turn % 2]
                    while not flapping.done() and endpoint_of(far) != f"127.0.0.1:{port}":
                        socks[port].send(b"here")
                        await asyncio.sleep(0.01)
                event = await flapping
                assert event.peer.name == "near"
                assert {endpoint.port for endpoint in event.endpoints} == set(socks)
                for sock in socks.values():
                    sock.close()
                receiver.close()

    run(scenario())
    message = [line for line in caplog.messages if "two hosts or programs seem to use its private key" in line]
    assert len(message) == 1 and message[0].count("127.0.0.1:") >= 2


def endpoint_of(far: wyrmhole.Tunnel) -> str | None:
    (peer,) = far.stats().peers.values()
    return peer.endpoint


async def first_flapping(events: wyrmhole.library.events.Events) -> wyrmhole.EndpointFlapping:
    async for event in events:
        if isinstance(event, wyrmhole.EndpointFlapping):
            return event
    raise AssertionError("the tunnel ended")
