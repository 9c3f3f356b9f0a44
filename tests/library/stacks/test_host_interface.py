"""The particularities of `device="tun"`, in a network namespace that the test makes.

The tests of the verbs run on both kinds of tunnels (see the fixture `device`).
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wyrmhole
from tests.support.namespaces import Namespace
from tests.support.tunnels import FAR, echo, far_config, generate, near_config, on_each_family, run

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
def test_sockets_use_only_the_interface(host: Namespace, version: int) -> None:
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


def test_name_in_use_is_refused(host: Namespace) -> None:
    from wyrmhole.library.stacks.host import HostStack

    first = HostStack.open("wyrtest")
    with pytest.raises(wyrmhole.TunnelError, match="wyrtest"):
        HostStack.open("wyrtest")
    first.close()
    first.close()


def test_other_sockets_of_the_host_are_left_alone(host: Namespace) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            from wyrmhole.library.stacks.host import HostStack

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


ELSEWHERE = {4: "198.51.100.7", 6: "2001:db8:7::7"}
"""Addresses that only a default route covers."""


def source_of_another_program(address: str) -> str:
    """Return the source address that an unbound socket of this host would use, or the error without a route."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, 53))
        except OSError as error:
            return str(error.strerror)
        return str(sock.getsockname()[0])


def give_link(host: Namespace) -> None:
    host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        host.ip("link", "set", name, "up")


def give_default_routes(host: Namespace) -> None:
    give_link(host)
    host.address("up0", "192.0.2.9/24", "2001:db8::9/64")
    for family, gateway in (("-4", "192.0.2.1"), ("-6", "2001:db8::1")):
        host.ip(family, "route", "add", "default", "via", gateway)


def rules_of(host: Namespace) -> str:
    return host.ip("-4", "rule") + host.ip("-6", "rule")


@pytest.mark.parametrize("has_defaults", [False, True], ids=["no default routes", "default routes"])
def test_other_programs_keep_their_routes(host: Namespace, has_defaults: bool) -> None:
    if has_defaults:
        give_default_routes(host)
    before, rules = {each: source_of_another_program(each) for each in ELSEWHERE.values()}, rules_of(host)

    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far, await far.start_server(echo, port=7000):
            text = near_config(near_key, far_key, far.stats().listen_port)
            async with wyrmhole.open(text, device="tun") as near:
                assert {each: source_of_another_program(each) for each in ELSEWHERE.values()} == before
                if has_defaults:
                    for family in ("-4", "-6"):
                        host.ip(family, "route", "del", "default")
                    assert "unreachable" in source_of_another_program(ELSEWHERE[4])
                    assert "unreachable" in source_of_another_program(ELSEWHERE[6])
                for version in (4, 6):
                    (await near.connect_socket(FAR[version], 7000, timeout=10)).close()

    run(scenario())
    assert rules_of(host) == rules


@pytest.mark.parametrize("filter_all", ["0", "1", "2"])
@pytest.mark.parametrize("has_defaults", [False, True], ids=["no default routes", "default routes"])
def test_reverse_path_filter_accepts_tunnel_traffic(host: Namespace, filter_all: str, has_defaults: bool) -> None:
    if has_defaults:
        give_default_routes(host)
    host.sysctl("net.ipv4.conf.all.rp_filter", filter_all)
    host.sysctl("net.ipv4.conf.default.rp_filter", "1")
    rules = rules_of(host)

    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            text = near_config(near_key, far_key, far.stats().listen_port)
            async with wyrmhole.open(text, device="tun") as near:
                assert await near.ping(FAR[4], timeout=10) > 0
                await near.reload(text.replace("10.66.0.1/24", "10.66.0.77/24"))
                assert source_of_another_program(ELSEWHERE[4]) in ("192.0.2.9", "Network is unreachable")

    run(scenario())
    assert rules_of(host) == rules


def test_two_tunnels_use_separate_free_tables(host: Namespace) -> None:
    from wyrmhole.library.stacks.host_routes import FIRST_TABLE

    give_link(host)
    host.ip("route", "add", "192.0.2.0/24", "dev", "up0", "table", str(FIRST_TABLE))
    host.ip("-6", "rule", "add", "from", "2001:db8::/32", "lookup", str(FIRST_TABLE))
    host.ip("rule", "add", "from", "192.0.2.1", "lookup", str(FIRST_TABLE + 1))

    async def scenario() -> None:
        keys = generate(), generate()
        async with wyrmhole.open(far_config(keys[1], keys[0])) as far, await far.start_server(echo, port=7000):
            text = near_config(*keys, far.stats().listen_port)
            async with (
                wyrmhole.open(text, device="tun", name="wyrone") as one,
                wyrmhole.open(text, device="tun", name="wyrtwo") as two,
            ):
                rules = rules_of(host)
                assert f"oif wyrone lookup {FIRST_TABLE + 2}" in rules
                assert f"oif wyrtwo lookup {FIRST_TABLE + 3}" in rules
                assert f"oif wyrone lookup {FIRST_TABLE + 1}" in rules, (
                    "tables used in the other family are skipped too"
                )
                for tunnel in (one, two):
                    (await tunnel.connect_socket(FAR[6], 7000, timeout=10)).close()
            assert "wyr" not in rules_of(host)

    run(scenario())
    assert "192.0.2.0/24" in host.ip("route", "show", "table", str(FIRST_TABLE))


def test_rule_of_a_family_follows_a_reload(host: Namespace) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far, await far.start_server(echo, port=7000):
            text = near_config(near_key, far_key, far.stats().listen_port)
            async with wyrmhole.open(text, device="tun") as near:
                await near.reload(text.replace(", fd66::1/64", ""))
                assert "oif" in host.ip("-4", "rule") and "oif" not in host.ip("-6", "rule")
                await near.reload(text)
                (await near.connect_socket(FAR[6], 7000, timeout=10)).close()

    run(scenario())


KILLED = """
import asyncio, os, signal, sys, wyrmhole
async def main():
    async with wyrmhole.open(sys.argv[1], device="tun", name="wyrtest"):
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_remains_after_sigkill_are_removed_by_the_next_tunnel(host: Namespace) -> None:
    text = near_config(generate(), generate(), 9)
    host.sysctl("net.ipv4.conf.all.rp_filter", "1")
    assert subprocess.run([sys.executable, "-c", KILLED, text], check=False).returncode == -9
    assert "oif wyrtest [detached]" in host.ip("-6", "rule")
    assert "unreachable" in source_of_another_program(ELSEWHERE[6])

    async def scenario() -> None:
        async with wyrmhole.open(text, device="tun", name="wyrtest"):
            assert rules_of(host).count("wyrtest") == 2
            assert rules_of(host).count("from 10.66.0.1") == 1

    before = rules_of(host)
    run(scenario())
    assert "wyrtest" in before and "wyrtest" not in rules_of(host)
    assert "10.66.0.1" in before and "10.66.0.1" not in rules_of(host)


def test_host_without_ipv6_is_the_reported_reason(host: Namespace) -> None:
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")

    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        text = near_config(near_key, far_key, 7)
        with pytest.raises(wyrmhole.TunnelError, match=r"IPv6 is switched off on this host .* or remove"):
            await wyrmhole.open(text, device="tun", name="wyrtest")
        assert "wyrtest" not in host.ip("link")
        only_v4 = wyrmhole.Config.parse(text)
        both = list(only_v4.interface.addresses)
        only_v4.interface.addresses[:] = [each for each in both if each.version == 4]
        async with wyrmhole.open(only_v4, device="tun", name="wyrtest") as tunnel:
            with pytest.raises(wyrmhole.TunnelError, match=r"not reloaded.* IPv6 is switched off"):
                await tunnel.reload(text)
            assert [each.version for each in tunnel.addresses] == [4]

    run(scenario())
