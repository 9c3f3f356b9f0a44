"""The resolver with a real server on loopback. A stand-in for the tunnel opens the sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import dns.rcode
import pytest
import uvloop

from tests.library.names.name_server import name_server
from tests.library.names.resolving import RECORDS, resolving, texts
from tests.support.loopback import Loopback, eventually, run
from wyrmhole.library.names import address_info
from wyrmhole.library.names.resolver import Resolver


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_are_queried_and_interleaved(host: str) -> None:
    """RFC 8305, 4."""

    async def scenario() -> None:
        async with resolving(host=host) as (resolver, server, _, _):
            found = await texts(resolver, "db.internal")
            assert sorted(found[::2][:2] + found[4:]) == ["fd00::1", "fd00::2", "fd00::3"]
            assert sorted(found[1:4:2]) == ["10.0.0.1", "10.0.0.2"]
            assert sorted(server.asked) == [("udp", "db.internal", "A"), ("udp", "db.internal", "AAAA")]

    run(scenario())


def test_results_have_the_form_of_the_standard_library() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, _, _, _):
            for name, port, kind in (("four.internal", 80, socket.SOCK_STREAM), ("10.0.0.4", 53, socket.SOCK_DGRAM)):
                (mine,) = await resolver.getaddrinfo(name, port, type=kind)
                assert mine == socket.getaddrinfo("10.0.0.4", port, type=kind)[0]
            (six,) = await resolver.getaddrinfo("::1", 80)
            assert six == socket.getaddrinfo("::1", 80, type=socket.SOCK_STREAM)[0]

    run(scenario())


def test_one_family_takes_one_question() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            assert len(await texts(resolver, "db.internal", socket.AF_INET)) == 2
            assert server.asked == [("udp", "db.internal", "A")]

    run(scenario())


@pytest.mark.parametrize(
    "name", ["10.9.8.7", "fd00::7", "[fd00::7]", "fe80::1%2", "localhost", "LOCALHOST.", "db.localhost"]
)
def test_literals_and_localhost_need_no_question(name: str) -> None:
    """RFC 6761, 6.3."""

    async def scenario() -> None:
        async with resolving() as (resolver, server, tunnel, _):
            assert await texts(resolver, name)
            assert server.asked == []
            assert tunnel.opened == []

    run(scenario())


def test_literal_of_the_other_family_is_refused() -> None:
    with pytest.raises(socket.gaierror, match="not an address of the requested family"):
        run(Resolver([], Loopback().open_socket).addresses("10.0.0.1", family=socket.AF_INET6))


def test_name_without_a_name_server_is_refused_with_a_remedy() -> None:
    with pytest.raises(socket.gaierror, match=r"'db\.internal' is a name .* add DNS = ADDRESS") as caught:
        run(Resolver([], Loopback().open_socket).addresses("db.internal"))
    assert caught.value.errno == socket.EAI_NONAME


def test_resolver_of_the_host_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the host's resolver was asked")

    async def scenario() -> None:
        async with resolving() as (resolver, _, _, _):
            for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
                monkeypatch.setattr(socket, name, refuse)
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse)
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            with pytest.raises(socket.gaierror):
                await resolver.addresses("nowhere.internal")

    run(scenario())


def test_truncated_answer_is_requested_again_over_tcp() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.truncates = True
            assert await texts(resolver, "four.internal", socket.AF_INET) == ["10.0.0.4"]
            assert [how for how, _, _ in server.asked] == ["udp", "tcp"]

    run(scenario())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_question_is_repeated_after_a_lost_answer(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.silent = 1
            assert await texts(resolver, "four.internal", socket.AF_INET) == ["10.0.0.4"]
            assert len(server.asked) == 2
            server.edns = "swallowed"
            assert await texts(resolver, "db.internal", socket.AF_INET)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 20))


def test_aliases_are_followed() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, _, _, _):
            assert await texts(resolver, "alias.internal") == ["10.0.0.4"]

    run(scenario())


@pytest.mark.parametrize(
    ("name", "ndots", "asked"),
    [
        ("printer", 1, ["printer.lab.internal", "printer.office.internal"]),
        ("printer.office", 1, ["printer.office", "printer.office.lab.internal", "printer.office.internal"]),
        ("printer.office", 2, ["printer.office.lab.internal", "printer.office.office.internal", "printer.office"]),
        ("printer.office.internal", 1, ["printer.office.internal"]),
        ("four.internal.", 1, ["four.internal"]),
        ("nothing.", 1, ["nothing"]),
    ],
)
def test_search_domains_and_ndots_follow_resolv_conf(name: str, ndots: int, asked: list[str]) -> None:
    """resolv.conf(5): with fewer dots than ndots, the search domains are tried first."""

    async def scenario() -> None:
        search = ["lab.internal", "office.internal" if name != "printer.office" or ndots == 2 else "internal"]
        async with resolving(search=search, ndots=ndots) as (resolver, server, _, _):
            with suppress(socket.gaierror):
                await resolver.addresses(name, family=socket.AF_INET)
            assert [each for _, each, _ in server.asked] == asked

    run(scenario())


def test_answers_are_cached_for_their_ttl() -> None:
    async def scenario() -> None:
        async with resolving(ttl=60) as (resolver, server, _, clock):
            for passed, questions in ((0, 1), (59.9, 1), (60, 2)):
                clock.now = 1000.0 + passed
                await texts(resolver, "four.internal", socket.AF_INET)
                assert len(server.asked) == questions
            resolver.flush()
            await texts(resolver, "four.internal", socket.AF_INET)
            assert len(server.asked) == 3

    run(scenario())


def test_ttl_is_limited_to_an_hour_and_zero_is_not_cached() -> None:
    async def scenario(ttl: int, passed: float, questions: int) -> None:
        async with resolving(ttl=ttl) as (resolver, server, _, clock):
            await texts(resolver, "four.internal", socket.AF_INET)
            clock.now += passed
            await texts(resolver, "four.internal", socket.AF_INET)
            assert len(server.asked) == questions

    run(scenario(10**6, 3599, 1))
    run(scenario(10**6, 3600, 2))
    run(scenario(0, 0, 2))


@pytest.mark.parametrize("name", ["nowhere.internal", "four.internal"])
def test_negative_answer_is_cached_only_with_a_soa(name: str) -> None:
    """RFC 2308, 5: missing names and missing records are cached, for at most five minutes."""

    async def scenario(ttl: int, soa: bool, passed: float, questions: int) -> None:
        async with resolving(ttl=ttl) as (resolver, server, _, clock):
            server.soa = soa
            for _ in range(2):
                with pytest.raises(socket.gaierror, match="do not know") as caught:
                    await resolver.addresses(name, family=socket.AF_INET6)
                assert caught.value.errno == socket.EAI_NONAME
                clock.now += passed
            assert len(server.asked) == questions

    run(scenario(60, True, 59, 1))
    run(scenario(60, True, 60, 2))
    run(scenario(3600, True, 299, 1))
    run(scenario(3600, True, 300, 2))
    run(scenario(60, False, 0, 2))


def test_server_failure_is_temporary_and_not_cached() -> None:
    async def scenario() -> None:
        async with resolving(lifetime=0.5) as (resolver, server, _, _):
            server.rcode = dns.rcode.SERVFAIL
            with pytest.raises(socket.gaierror, match="no name server of the tunnel answered") as caught:
                await resolver.addresses("four.internal")
            assert caught.value.errno == socket.EAI_AGAIN
            server.rcode = None
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]

    run(scenario())


def test_missing_server_is_followed_by_the_next() -> None:
    async def scenario() -> None:
        async with name_server(RECORDS) as (_, port):
            resolver = Resolver(["127.0.0.9", "127.0.0.1"], Loopback().open_socket, port=port)
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]

    run(scenario())


# Arguments, services and bounds


@pytest.mark.parametrize("type", [0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW])
@pytest.mark.parametrize("family", [0, socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("port", [80, "80", b"80", None, "domain"])
@pytest.mark.parametrize("flags", [0, socket.AI_NUMERICHOST, socket.AI_CANONNAME, socket.AI_PASSIVE])
def test_arguments_give_the_results_of_the_standard_library(type: int, family: int, port: Any, flags: int) -> None:
    if type == socket.SOCK_RAW or (port == "domain" and not type):
        return  # the C library lists no raw sockets for a port
    address = "fd00::7" if family == socket.AF_INET6 else "10.0.0.7"
    expected = socket.getaddrinfo(address, port, family, type, 0, flags)
    number = address_info.as_port(port, type, flags)
    resolver = Resolver([], Loopback().open_socket)
    assert run(resolver.getaddrinfo(address, number, family=family, type=type, flags=flags)) == expected


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((socket.AF_UNIX, 0, 0), socket.EAI_FAMILY),
        ((0, 77, 0), socket.EAI_SOCKTYPE),
        ((0, 0, 1 << 20), socket.EAI_BADFLAGS),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[int, int, int], number: int) -> None:
    with pytest.raises(socket.gaierror) as caught:
        address_info.check(*arguments)
    assert caught.value.errno == number


def test_concurrent_equal_questions_share_one_query() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.answering.clear()
            many = [asyncio.create_task(texts(resolver, "four.internal", socket.AF_INET)) for _ in range(10)]
            await eventually(lambda: len(server.asked) == 1)
            many[0].cancel()
            server.answering.set()
            assert await asyncio.gather(*many[1:]) == [["10.0.0.4"]] * 9
            assert len(server.asked) == 1
            with pytest.raises(asyncio.CancelledError):
                await many[0]

    run(scenario())


def test_services_are_ordered_by_priority() -> None:
    """RFC 2782."""

    async def scenario() -> None:
        async with resolving() as (resolver, _, _, _):
            assert await resolver.srv("_sip._tcp.internal") == [("first.internal", 5060), ("second.internal", 5061)]
            for name in ("_none._tcp.internal", "_gone._tcp.internal"):
                with pytest.raises(socket.gaierror, match="do not know"):
                    await resolver.srv(name)

    run(scenario())


LONG = ".".join(["abcdefghi"] * 30)


@pytest.mark.parametrize(
    "name", ["a" * 64 + ".internal", "a..b", "a\\", "a\\999", "\udcff.internal", "ü" * 60, LONG, "", "."]
)
def test_invalid_name_is_refused_without_a_question(name: str) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            with pytest.raises(socket.gaierror):
                await resolver.addresses(name)
            assert server.asked == []

    run(scenario())


def test_cache_is_bounded() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            resolver._cache._capacity = 1
            for name in ("four.internal", "db.internal", "four.internal"):
                await resolver.addresses(name, family=socket.AF_INET)
            assert len(server.asked) == 3

    run(scenario())


def test_missing_dnspython_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dns", None)
    with pytest.raises(socket.gaierror, match=r"extra `dns`, for example pip install '\.\[dns\]' in a checkout"):
        run(Resolver(["127.0.0.1"], Loopback().open_socket).addresses("db.internal"))


def test_servers_must_be_addresses() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        Resolver(["dns.internal"], Loopback().open_socket)
    assert repr(Resolver([ip_address("10.0.0.53")], Loopback().open_socket)) == "<Resolver 10.0.0.53>"
