"""Added and removed peers, waiting for handshakes, reloading, and events."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from pathlib import Path
from typing import TypeVar

import pytest

import wyrmhole
from tests.support.tunnels import FAR_V4, FAR_V6, NEAR_V4, echo, far_config, generate, near_config, run, tunnels
from wyrmhole.device.assemble import make_device
from wyrmhole.engine.select import has_native
from wyrmhole.library.events import CAPACITY, Event, Events, Expired
from wyrmhole.protocol.constants import MILLISECOND, Timings

network = pytest.mark.network
AnEvent = TypeVar("AnEvent", bound=Event)


@network
def test_wait_handshake_begins_a_handshake() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            following = ends.far.events()
            peer = await ends.near.wait_handshake(timeout=20)
            assert peer.name == "far"
            event = await anext(following)
            assert isinstance(event, wyrmhole.Handshake | wyrmhole.Roamed)
            await ends.near.wait_handshake(timeout=0)
            await ends.near.peers[peer.public_key].wait_handshake(timeout=0)

    run(scenario())


@network
@pytest.mark.parametrize("engine", ["portable", "native"])
def test_dropped_packets_are_counted_for_their_peer(engine: str) -> None:
    """`far` sends from an address that `near` no longer allows it."""
    if engine == "native" and not has_native():
        pytest.skip("the native engine is not built")

    async def scenario() -> None:
        async with tunnels(engine=engine) as ends:
            await ends.near.ping(FAR_V4, timeout=20)
            (peer,) = ends.near.peers.values()
            assert peer.stats().drops == {} == ends.near.stats().drops
            await ends.near.peers.add(peer.public_key, allowed_ips=["10.255.0.0/16"])
            while "bad_source" not in peer.stats().drops:
                with contextlib.suppress(TimeoutError):
                    await ends.far.ping(NEAR_V4, timeout=0.05)
            assert set(ends.near.stats().drops) == {"bad_source"}

    run(scenario())


@network
@pytest.mark.parametrize("hours", [-1, 1])
def test_session_is_recognised_with_any_wall_clock(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await ends.near.wait_handshake(timeout=20)
            former = time.time_ns()
            monkeypatch.setattr(ends.near._outside.device._clock, "wall", lambda: former + hours * 3600 * 10**9)
            assert (await ends.near.wait_handshake(timeout=0)).name == "far"

    run(scenario())


@network
def test_interface_that_was_down_has_no_session() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            peer = await ends.near.wait_handshake(timeout=20)
            device = ends.near._outside.device
            device._go_down()
            await device.applied()
            await asyncio.sleep(0)
            status = device.peer(peer.public_key)
            assert status is not None and status.session_age is None
            device._go_up()
            await ends.near.wait_handshake(timeout=20)

    run(scenario())


@network
def test_wait_handshake_without_a_reachable_peer_raises_at_once() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            lonely = generate().public_key()
            peer = await ends.near.peers.add(lonely, endpoint="127.0.0.1:9")
            waiting = asyncio.ensure_future(peer.wait_handshake())
            await asyncio.sleep(0)
            await ends.near.peers.remove(lonely)
            with pytest.raises(KeyError, match="no peer"):
                await waiting

            await ends.far.close()
            near = ends.near
            (public,) = near.peers
            await near.peers.remove(public)
            with pytest.raises(wyrmhole.TunnelError, match="no peer to wait for"):
                await near.wait_handshake()
            peer = await near.peers.add(lonely, endpoint="127.0.0.1:9")
            waiting_for_any = asyncio.ensure_future(near.wait_handshake())
            await asyncio.sleep(0)
            await near.reload(near.config.emit().partition("[Peer]")[0])
            with pytest.raises(wyrmhole.TunnelError, match="no peer to wait for"):
                await waiting_for_any

    run(scenario())


@network
def test_wait_handshake_times_out() -> None:
    async def scenario() -> None:
        key = generate()
        async with wyrmhole.open(near_config(key, generate(), port=9)) as near:
            with pytest.raises(TimeoutError, match="handshake"):
                await near.wait_handshake(timeout=0.1)

    run(scenario())


@network
def test_peer_is_added_used_and_removed_at_run_time() -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        own = f"[Interface]\nPrivateKey = {near_key.base64()}\nAddress = {NEAR_V4}/24\n"
        async with (
            wyrmhole.open(far_config(far_key, near_key)) as far,
            wyrmhole.open(own) as near,
            await far.start_server(echo, port=7000),
        ):
            with pytest.raises(OSError, match="No route"):
                await near.connect_socket(FAR_V4, 7000, timeout=5)
            endpoint = f"127.0.0.1:{far.stats().listen_port}"
            public = far_key.public_key().base64()
            peer = await near.peers.add(public, allowed_ips=[FAR_V4], endpoint=endpoint, name="bee")
            assert (peer.name, list(near.peers), near.peers[public].name) == ("bee", [public], "bee")
            (await near.connect_socket(FAR_V4, 7000, timeout=20)).close()
            assert peer.stats().rx_bytes > 0
            await near.peers.remove(public)
            assert public not in near.peers
            with pytest.raises(KeyError):
                await near.peers.remove(public)
            with pytest.raises(OSError, match="No route"):
                await near.connect_socket(FAR_V4, 7000, timeout=5)

    run(scenario())


@network
def test_invalid_peer_is_refused() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            key = generate().public_key()
            with pytest.raises(ValueError, match="base64"):
                await ends.near.peers.add("no key")
            with pytest.raises(ValueError, match=r"10\.0\.0"):
                await ends.near.peers.add(key, allowed_ips=["10.0.0"])
            with pytest.raises(ValueError, match="host:port"):
                await ends.near.peers.add(key, endpoint="nowhere")
            assert len(ends.near.peers) == 1

    run(scenario())


@network
def test_reload_keeps_sessions_and_sockets(tmp_path: Path) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far, await far.start_server(echo, port=7000):
            text = near_config(near_key, far_key, far.stats().listen_port)
            path = tmp_path / "near.conf"
            path.write_text(text)
            path.chmod(0o600)
            async with wyrmhole.open(path) as near:
                reader, writer = await near.open_connection(FAR_V4, 7000)
                following, port = near.events(), near.stats().listen_port
                path.write_text(text.replace("[Peer]", "MTU = 1380\n[Peer]").replace("/64", "/64, 10.66.0.7/32", 1))
                await near.reload()
                assert near.stats().mtu == 1380
                assert near.stats().listen_port == port
                writer.write(b"same session")
                assert await reader.readexactly(12) == b"same session"
                sock = await near.connect_socket(FAR_V6, 7000, timeout=5)
                sock.close()
                assert not following._waiting, "no new handshake was needed"
                writer.close()

    run(scenario())


@network
def test_reload_of_an_unreadable_file_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            before = ends.near.config
            with pytest.raises(wyrmhole.ConfigFileError):
                await ends.near.reload("[Interface]\nNonsense = 1\n")
            with pytest.raises(OSError, match="nowhere"):
                await ends.near.reload(tmp_path / "nowhere.conf")
            assert ends.near.config is before
            await ends.near.ping(FAR_V4)

    run(scenario())


@network
def test_roaming_of_a_peer_is_an_event() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await ends.near.ping(FAR_V4)
            following = ends.far.events()
            await ends.near.reload(ends.near_text.replace("[Peer]", f"ListenPort = {free_port()}\n[Peer]"))
            await ends.near.ping(FAR_V4)
            async for event in following:
                if isinstance(event, wyrmhole.Roamed):
                    assert event.endpoint.port == ends.near.stats().listen_port
                    assert event.peer.name == "near"
                    return

    run(scenario())


SHORT = Timings(
    rekey_after=200 * MILLISECOND,
    reject_after=300 * MILLISECOND,
    rekey_attempt=500 * MILLISECOND,
    rekey_timeout=100 * MILLISECOND,
    keepalive=50 * MILLISECOND,
)
"""A session's times divided by six hundred."""


@network
def test_expired_session_and_silent_peer_are_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.library.configured_device.make_device", functools.partial(make_device, timings=SHORT))

    async def scenario() -> None:
        async with tunnels() as ends:
            following = ends.near.events()
            await ends.near.ping(FAR_V4)
            await ends.far.close()
            assert (await first_of(following, Expired)).peer.name == "far"
            with pytest.raises(TimeoutError):
                await ends.near.ping(FAR_V4, timeout=0.1)
            assert (await first_of(following, wyrmhole.HandshakeFailed)).peer.name == "far"

    run(scenario())


async def first_of(following: Events, kind: type[AnEvent]) -> AnEvent:
    async for event in following:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the tunnel ended without {kind.__name__}")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@network
def test_invalid_config_is_refused_before_anything_is_made() -> None:
    async def scenario() -> None:
        key = generate().base64()
        with pytest.raises(wyrmhole.ConfigFileError, match="PrivateKey"):
            await wyrmhole.open("[Interface]\nAddress = 10.0.0.1/24\n")
        with pytest.raises(wyrmhole.ConfigFileError, match="Address"):
            await wyrmhole.open(f"[Interface]\nPrivateKey = {key}\n")
        with pytest.raises(FileNotFoundError):
            await wyrmhole.open("/nonexistent/wg0.conf")
        with pytest.raises(ValueError, match="unknown engine 'steam': use auto"):
            await wyrmhole.open(f"[Interface]\nPrivateKey = {key}\nAddress = 10.0.0.1/24\n", engine="steam")

    run(scenario())


@pytest.mark.parametrize("options", [{"stack": "magic"}, {"device": "tap"}, {"name": "wg0"}])
def test_unavailable_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="use"):
        wyrmhole.open("x", **options)


# Events


def test_slow_follower_loses_the_oldest_events_and_is_told() -> None:
    async def scenario() -> None:
        events = Events()
        for number in range(CAPACITY + 3):
            events.put(Expired(number))  # type: ignore[arg-type]
        assert events.lost == 3
        events.end()
        told: list[object] = [event.peer async for event in events]
        assert told == list(range(3, CAPACITY + 3))

    run(scenario())


def test_follower_waits_for_events_and_ends_with_the_tunnel() -> None:
    async def scenario() -> None:
        events = Events()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        events.put(Expired(1))  # type: ignore[arg-type]
        assert (await waiting).peer == 1  # type: ignore[comparison-overlap]
        events.end()
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    run(scenario())
