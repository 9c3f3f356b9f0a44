"""Endpoints given as host names: resolved again, tried in turn, and followed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

import wyrmhole
from tests.support.tunnels import FAR_V4, far_config, generate, near_config, run
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.library.endpoints import CHECKS_PER_TTL, EndpointNames, moved, next_address
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

A, B, C = Endpoint("192.0.2.1", 51820), Endpoint("2001:db8::1", 51820), Endpoint("192.0.2.3", 51820)


NAME = ConfigEndpoint("vpn.example", 51820)


KEY = PublicKey(bytes(range(32)))


class Names:
    """An EndpointNames with a fake resolver and device."""

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


def test_changed_address_of_a_name_is_followed_after_its_ttl() -> None:
    names = Names([C])
    watch(names, [A, B], checks=CHECKS_PER_TTL - 1)
    assert names.moves == []
    watch(names, [A, B], checks=CHECKS_PER_TTL)
    assert names.moves == [C]


def test_failed_handshakes_try_every_address_in_turn() -> None:
    names = Names([A, B, C], [A, B, C], [A, B, C])
    names.unanswered = 1
    watch(names, [A, B, C], checks=3)
    assert names.moves == [B, C, A]


def test_roamed_peer_stays_while_its_name_is_unchanged() -> None:
    names = Names([A, B])
    names.current = Endpoint("203.0.113.9", 1)
    watch(names, [A, B], checks=CHECKS_PER_TTL)
    assert names.moves == []


def test_failed_look_up_keeps_the_former_addresses() -> None:
    names = Names(socket.gaierror(socket.EAI_AGAIN, "later"), socket.gaierror(socket.EAI_AGAIN, "later"))
    names.unanswered = 1
    watch(names, [A, B], checks=2)
    assert names.moves == [B, A]


def test_endpoint_given_as_an_address_is_not_followed() -> None:
    names = Names()
    literal = ConfigEndpoint("192.0.2.1", 51820)

    async def scenario() -> None:
        names.names.watch(KEY, literal, [A])
        names.unanswered = 1
        await names.names.check()
        assert await names.names.resolve(literal) == [A]

    run(scenario())


def test_failed_move_is_repeated_at_the_next_check() -> None:
    names = Names([C], [C])
    refusals = [wyrmhole.TunnelError(0, "the interface is down")]

    def move(key: PublicKey, endpoint: Endpoint) -> None:
        if refusals:
            raise refusals.pop()
        names.move(key, endpoint)

    names.names.move = move
    watch(names, [A, B], checks=CHECKS_PER_TTL + 1)
    assert names.moves == [C]


def test_task_that_follows_names_survives_any_error(caplog: pytest.LogCaptureFixture) -> None:
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


def test_unresolved_name_is_looked_up_until_it_has_an_address() -> None:
    later = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    names = Names(later, later, [B])
    names.current = None
    told: list[str] = []
    names.names.on_failure = lambda _, reason: told.append(reason)
    watch(names, [], checks=3)
    assert names.moves == [B]
    assert len(told) == 3 and "vpn.example:51820" in told[-1] and "Temporary failure" in told[-1]


def test_slow_name_does_not_delay_a_tunnel_with_another_peer() -> None:
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


def test_error_contains_the_unknown_name() -> None:
    names = Names(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    async def scenario() -> None:
        with pytest.raises(socket.gaierror, match=r"vpn\.example:51820: Name or service") as caught:
            await names.names.resolve(NAME)
        assert caught.value.errno == socket.EAI_NONAME

    run(scenario())


def test_next_address_and_new_address_of_a_name() -> None:
    assert next_address([], A) is None
    assert next_address([A], A) == A
    assert next_address([A, B], None) == A
    assert moved([A], [A], C) is None
    assert moved([A], [B, A], A) is None
    assert moved([A], [], A) is None
    assert moved([A], [B], A) == B


@pytest.mark.network
def test_endpoint_name_is_resolved_outside_and_followed() -> None:
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
