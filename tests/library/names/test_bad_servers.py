"""Name servers that are slow, partial, silent or broken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import dns.rcode
import pytest

from tests.library.names.name_server import NameServer, name_server
from tests.library.names.resolving import RECORDS, resolving, texts, took
from tests.support.loopback import Loopback, eventually, run
from wyrmhole.library.names.resolver import QUESTIONS, UNANSWERED, Resolver


def test_unanswered_record_type_costs_50_ms_once() -> None:
    async def scenario() -> None:
        async with resolving(lifetime=15) as (resolver, server, _, clock):
            server.mute = {"AAAA"}
            found, seconds = await took(texts(resolver, "four.internal"))
            assert found == ["10.0.0.4"] and seconds < 5
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            await eventually(lambda: not resolver._open_questions)
            before = len(server.asked)
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            assert len(server.asked) == before, "neither type is asked for again"
            clock.now += UNANSWERED
            server.mute = set()
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            assert len(server.asked) == before + 2

    run(scenario())


def test_late_answer_is_used() -> None:
    async def scenario() -> None:
        async with resolving(lifetime=15) as (resolver, server, _, _):
            server.mute = {"AAAA"}
            assert sorted(await texts(resolver, "db.internal")) == ["10.0.0.1", "10.0.0.2"]
            assert resolver.is_incomplete("db.internal") and not resolver.is_incomplete("four.internal")
            server.mute = set()
            everything = await resolver.addresses("db.internal", complete=True)
            assert len(everything) == 5
            assert len(await texts(resolver, "db.internal")) == 5

    run(scenario())


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NXDOMAIN", "NOTIMP", "FORMERR"])
def test_name_resolves_if_the_server_refuses_one_type(rcode: str) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.rcodes = {"AAAA": dns.rcode.from_text(rcode)}
            for _ in range(2):
                assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            if rcode != "NXDOMAIN":
                assert [kind for _, _, kind in server.asked].count("A") == 1

    run(scenario())


@pytest.mark.parametrize("edns", ["refused", "swallowed"])
def test_server_without_edns_is_queried_without_it_afterwards(edns: str) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.edns = edns
            assert await texts(resolver, "four.internal", socket.AF_INET) == ["10.0.0.4"]
            assert len(server.asked) == 2
            assert await texts(resolver, "db.internal", socket.AF_INET)
            assert len(server.asked) == 3

    run(scenario())


def test_truncated_answer_is_used_if_tcp_fails() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.truncates, server.has_tcp, server.partial = True, False, True
            assert await texts(resolver, "four.internal", socket.AF_INET) == ["10.0.0.4"]

    run(scenario())


def test_larger_size_is_requested_if_tcp_fails() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.truncates, server.has_tcp, server.largest = True, False, 1232
            assert await texts(resolver, "four.internal", socket.AF_INET) == ["10.0.0.4"]
            server.largest = 65535
            with pytest.raises(socket.gaierror, match="truncated, and it does not answer by TCP"):
                await texts(resolver, "db.internal", socket.AF_INET)

    run(scenario())


def test_referral_makes_the_resolver_try_the_next_server() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.refers = True
            with pytest.raises(socket.gaierror, match="a referral to other servers"):
                await resolver.addresses("four.internal")

    run(scenario())


def test_alias_not_followed_by_the_server_is_followed_here() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _, _):
            server.follows_aliases = server.soa = False
            assert await texts(resolver, "alias.internal", socket.AF_INET) == ["10.0.0.4"]

    run(scenario())


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[NameServer, NameServer, Resolver]]:
    """Run two servers, the first and the second of a list."""
    async with (
        name_server(RECORDS) as (second, port),
        name_server(RECORDS, host="127.0.0.2", port=port) as (first, _),
    ):
        yield first, second, Resolver(["127.0.0.2", "127.0.0.1"], Loopback().open_socket, port=port)


def test_silent_first_server_is_queried_last_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with two_servers() as (dead, _, resolver):
            dead.mute = {"A", "AAAA"}
            _, seconds = await took(texts(resolver, "four.internal"))
            assert seconds < 4 and dead.asked
            before = len(dead.asked)
            monkeypatch.setattr("wyrmhole.library.names.resolver.STAGGER", 15)
            await texts(resolver, "db.internal")
            assert len(dead.asked) == before

    run(scenario())


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED"])
def test_failed_server_is_followed_by_the_next_at_once(rcode: str) -> None:
    async def scenario() -> None:
        async with two_servers() as (bad, server, resolver):
            bad.rcode = dns.rcode.from_text(rcode)
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            assert ("udp", "four.internal", "A") in server.asked

    run(scenario())


def test_search_domain_that_a_server_refuses_is_skipped() -> None:
    async def scenario() -> None:
        async with resolving(search=["elsewhere.example"]) as (resolver, server, _, _):
            answer = server.answer

            def refuse(how: str, data: bytes) -> bytes:
                server.rcode = dns.rcode.REFUSED if b"elsewhere" in data else None
                return answer(how, data)

            server.answer = refuse  # type: ignore[method-assign]
            server.records[("short", "A")] = ["10.0.0.8"]
            assert await texts(resolver, "short") == ["10.0.0.8"]
            server.records.pop(("short", "A"))

    run(scenario())


def test_unanswered_name_fails_in_time_with_one_clear_error() -> None:
    async def scenario() -> None:
        async with resolving(lifetime=0.2) as (resolver, server, _, _):
            server.mute = {"A", "AAAA"}
            with pytest.raises(socket.gaierror) as caught:
                await resolver.addresses("four.internal")
            assert caught.value.errno == socket.EAI_AGAIN
            assert str(caught.value.strerror).startswith("no name server of the tunnel answered for four.internal: ")
            assert "Do53" not in str(caught.value)
            server.mute, resolver._lifetime = set(), 15.0
            assert await texts(resolver, "four.internal") == ["10.0.0.4"], "a missing answer is not cached"

    run(scenario())


def test_unanswered_questions_of_one_type_do_not_delay_the_other() -> None:
    async def scenario() -> None:
        async with resolving(lifetime=15) as (resolver, server, _, _):
            server.mute = {"AAAA"}
            for number in range(3 * QUESTIONS):
                server.records[(f"h{number}.internal", "A")] = ["10.0.0.4"]
            names = [f"h{number}.internal" for number in range(3 * QUESTIONS)]
            found, seconds = await took(asyncio.gather(*(texts(resolver, name) for name in names)))
            assert found == [["10.0.0.4"]] * len(names) and seconds < 10
            for name in names:
                server.records.pop((name, "A"))
            await eventually(lambda: not resolver._open_questions)

    run(scenario())


def test_unreachable_server_is_not_queried() -> None:
    async def scenario() -> None:
        async with name_server(RECORDS) as (_, port):
            inside = {ip_address("127.0.0.1")}
            tunnel = Loopback()
            servers = ["192.0.2.53", "127.0.0.1"]
            resolver = Resolver(servers, tunnel.open_socket, port=port, leads_to=inside.__contains__)
            assert await texts(resolver, "four.internal") == ["10.0.0.4"]
            inside.clear()
            with pytest.raises(socket.gaierror, match=r"192\.0\.2\.53, 127\.0\.0\.1 is in no peer's AllowedIPs"):
                await resolver.addresses("db.internal")

    run(scenario())
