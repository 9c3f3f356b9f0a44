"""Peers that come and go, endpoints as names, reloading, and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import wyrmhole
from tests.support.tunnels import FAR_V4, FAR_V6, NEAR_V4, echo, far_config, generate, near_config, run, tunnels
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.assemble import make_device
from wyrmhole.engine.select import has_native
from wyrmhole.library.endpoints import CHECKS_PER_TTL, EndpointNames, moved, next_address
from wyrmhole.library.events import CAPACITY, Event, Events, Expired
from wyrmhole.protocol.constants import MILLISECOND, Timings
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

network = pytest.mark.network
AnEvent = TypeVar("AnEvent", bound=Event)
A, B, C = Endpoint("192.0.2.1", 51820), Endpoint("2001:db8::1", 51820), Endpoint("192.0.2.3", 51820)
NAME = ConfigEndpoint("vpn.example", 51820)
KEY = PublicKey(bytes(range(32)))


@network
def test_waiting_for_a_handshake_begins_one() -> None:
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
def test_a_session_is_known_whatever_the_wall_clock_says(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await ends.near.wait_handshake(timeout=20)
            former = time.time_ns()
            monkeypatch.setattr(ends.near._outside.device._clock, "wall", lambda: former + hours * 3600 * 10**9)
            assert (await ends.near.wait_handshake(timeout=0)).name == "far"

    run(scenario())


@network
def test_an_interface_that_was_down_has_no_session() -> None:
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
def test_waiting_for_nobody_ends_at_once() -> None:
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
def test_a_handshake_that_does_not_come_times_out() -> None:
    async def scenario() -> None:
        key = generate()
        async with wyrmhole.open(near_config(key, generate(), port=9)) as near:
            with pytest.raises(TimeoutError, match="handshake"):
                await near.wait_handshake(timeout=0.1)

    run(scenario())


@network
def test_a_peer_is_added_used_and_removed_while_the_tunnel_runs() -> None:
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
def test_what_cannot_be_a_peer_is_refused() -> None:
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
def test_reloading_keeps_sessions_and_sockets(tmp_path: Path) -> None:
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
def test_a_reload_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
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
def test_a_peer_that_moves_is_told_of() -> None:
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
def test_keys_that_are_gone_and_a_peer_that_does_not_answer_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_config_that_is_no_tunnel_is_refused_before_anything_is_made() -> None:
    async def scenario() -> None:
        key = generate().base64()
        with pytest.raises(wyrmhole.ConfigFileError, match="PrivateKey"):
            await wyrmhole.open("[Interface]\nAddress = 10.0.0.1/24\n")
        with pytest.raises(wyrmhole.ConfigFileError, match="Address"):
            await wyrmhole.open(f"[Interface]\nPrivateKey = {key}\n")
        with pytest.raises(FileNotFoundError):
            await wyrmhole.open("/nonexistent/wg0.conf")
        with pytest.raises(ValueError, match="no engine 'steam': use auto"):
            await wyrmhole.open(f"[Interface]\nPrivateKey = {key}\nAddress = 10.0.0.1/24\n", engine="steam")

    run(scenario())


@pytest.mark.parametrize("options", [{"stack": "magic"}, {"device": "tap"}, {"name": "wg0"}])
def test_options_that_are_not_there(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="use"):
        wyrmhole.open("x", **options)


# Endpoints as names


class Names:
    """An EndpointNames whose resolver and device are this test."""

    def __init__(self, *answers: list[Endpoint] | Exception) -> None:
        self.answers = list(answers)
        self.current: Endpoint | None = A
        self.unanswered = 0
        self.moves: list[Endpoint] = []
        self.names = EndpointNames(lambda _: self.unanswered, lambda _: self.current, self.move, self.look_up)

    def move(self, _: PublicKey, endpoint: Endpoint) -> None:
        self.current = endpoint
        self.moves.append(endpoint)

    async def look_up(self, host: str, port: int) -> list[Endpoint]:
        assert (host, port) == (NAME.host, NAME.port)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def watch(names: Names, first: list[Endpoint], then: Callable[[], None] | None = None, checks: int = 1) -> None:
    async def scenario() -> None:
        names.names.watch(KEY, NAME, first)
        if then is not None:
            then()
        for _ in range(checks):
            await names.names.check()
        names.names.close()

    run(scenario())


def test_a_name_that_goes_elsewhere_is_followed_when_its_time_is_over() -> None:
    names = Names([C])
    watch(names, [A, B], checks=CHECKS_PER_TTL - 1)
    assert names.moves == []
    watch(names, [A, B], checks=CHECKS_PER_TTL)
    assert names.moves == [C]


def test_handshakes_that_fail_have_every_address_tried_in_turn() -> None:
    names = Names([A, B, C], [A, B, C], [A, B, C])
    names.unanswered = 1
    watch(names, [A, B, C], checks=3)
    assert names.moves == [B, C, A]


def test_a_peer_that_roamed_stays_where_it_is_while_its_name_says_the_same() -> None:
    names = Names([A, B])
    names.current = Endpoint("203.0.113.9", 1)
    watch(names, [A, B], checks=CHECKS_PER_TTL)
    assert names.moves == []


def test_a_resolver_that_fails_leaves_the_addresses_there_were() -> None:
    names = Names(socket.gaierror(socket.EAI_AGAIN, "later"), socket.gaierror(socket.EAI_AGAIN, "later"))
    names.unanswered = 1
    watch(names, [A, B], checks=2)
    assert names.moves == [B, A]


def test_an_address_is_not_looked_after() -> None:
    names = Names()
    literal = ConfigEndpoint("192.0.2.1", 51820)

    async def scenario() -> None:
        names.names.watch(KEY, literal, [A])
        names.unanswered = 1
        await names.names.check()
        assert await names.names.resolve(literal) == [A]

    run(scenario())


def test_a_move_that_fails_is_made_at_the_next_look() -> None:
    names = Names([C], [C])
    refusals = [wyrmhole.TunnelError(0, "the interface is down")]

    def move(key: PublicKey, endpoint: Endpoint) -> None:
        if refusals:
            raise refusals.pop()
        names.move(key, endpoint)

    names.names.move = move
    watch(names, [A, B], checks=CHECKS_PER_TTL + 1)
    assert names.moves == [C]


def test_the_task_that_follows_names_survives_any_error(caplog: pytest.LogCaptureFixture) -> None:
    names = Names([C])
    names.answers.insert(0, RuntimeError("not foreseen"))
    names.unanswered = 1
    found = asyncio.Event()

    def move(key: PublicKey, endpoint: Endpoint) -> None:
        names.move(key, endpoint)
        found.set()

    async def scenario() -> None:
        names.names.move, names.names.interval = move, 0
        names.names.watch(KEY, NAME, [A])
        await found.wait()
        names.names.close()

    run(scenario())
    assert names.moves == [C] and "not foreseen" in caplog.text


def test_a_name_that_had_no_address_is_asked_for_until_it_has_one() -> None:
    later = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    names = Names(later, later, [B])
    names.current = None
    told: list[str] = []
    names.names.on_failure = lambda _, reason: told.append(reason)
    watch(names, [], checks=3)
    assert names.moves == [B]
    assert len(told) == 3 and "vpn.example:51820" in told[-1] and "Temporary failure" in told[-1]


def test_a_slow_name_does_not_hold_up_a_tunnel_that_has_somebody_to_talk_to() -> None:
    async def scenario() -> None:
        released = asyncio.Event()

        async def look_up(host: str, port: int) -> list[Endpoint]:
            if host == "slow.example":
                await released.wait()
            if host == "bad.example":
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [A]

        names = EndpointNames(lambda _: 0, lambda _: None, lambda _, __: None, look_up)
        slow, bad = ConfigEndpoint("slow.example", 1), ConfigEndpoint("bad.example", 2)
        wanted = [NAME, slow, bad]
        found, failures = await names.resolve_some(wanted, is_enough=bool, patience=0)
        assert found[NAME] == [A] and list(failures) == [slow, bad]
        assert "slow.example:1: the host's name servers do not answer" in str(failures[slow])

        waiting = asyncio.ensure_future(names.resolve_some([slow, bad], is_enough=bool, patience=0))
        await asyncio.sleep(0)
        released.set()
        found, failures = await waiting
        assert list(found) == [slow] and list(failures) == [bad]

    run(scenario())


def test_a_name_that_does_not_exist_is_named() -> None:
    names = Names(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    async def scenario() -> None:
        with pytest.raises(socket.gaierror, match=r"vpn\.example:51820: Name or service") as caught:
            await names.names.resolve(NAME)
        assert caught.value.errno == socket.EAI_NONAME

    run(scenario())


def test_the_next_address_and_where_a_name_moved() -> None:
    assert next_address([], A) is None
    assert next_address([A], A) == A
    assert next_address([A, B], None) == A
    assert moved([A], [A], C) is None
    assert moved([A], [B, A], A) is None
    assert moved([A], [], A) is None
    assert moved([A], [B], A) == B


@network
def test_an_endpoint_s_name_is_resolved_outside_and_followed() -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            port = far.stats().listen_port
            async with wyrmhole.open(near_config(near_key, far_key, port, host="localhost")) as near:
                await near.ping(FAR_V4)
                following = near.events()
                names = near._outside.endpoints

                async def look_up(host: str, port: int) -> list[Endpoint]:
                    return [Endpoint("127.0.0.2", port)]

                names.look_up = look_up
                for _ in range(CHECKS_PER_TTL):
                    await names.check()
                changes = [event for event in following._waiting if isinstance(event, wyrmhole.EndpointResolved)]
                assert [change.endpoint.host for change in changes] == ["127.0.0.2"]
                await near.ping(FAR_V4)

    run(scenario())


# Events


def test_a_follower_that_is_behind_loses_the_oldest_and_knows_it() -> None:
    async def scenario() -> None:
        events = Events()
        for number in range(CAPACITY + 3):
            events.put(Expired(number))  # type: ignore[arg-type]
        assert events.lost == 3
        events.end()
        told: list[object] = [event.peer async for event in events]
        assert told == list(range(3, CAPACITY + 3))

    run(scenario())


def test_a_follower_waits_for_what_comes_and_ends_with_the_tunnel() -> None:
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
