"""A reload is atomic and checks the same as `open`, like every other change of a tunnel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import wyrmhole
from tests.support.tunnels import FAR, FAR_V4, NEAR_V4, Ends, echo, generate, near_config, run, tunnels
from wyrmhole.library.configuring import check_config, leads_to
from wyrmhole.wire.prefix import Prefix

KEY = "[Interface]\nPrivateKey = {key}\n"
HALF_WRITTEN = {
    "empty": "",
    "header": "[Interface]\n",
    "key only": KEY,
    "address only": "[Interface]\nAddress = 10.66.0.1/24\n",
    "zero key": "[Interface]\nPrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nAddress = 10.66.0.1/24\n",
    "cut in a key": "[Interface]\nPrivateKey = {cut}",
    "MTU below IPv6": KEY + "Address = 10.66.0.1/24, fd66::1/64\nMTU = 70\n",
}


def state_of(ends: Ends) -> tuple[Any, ...]:
    near = ends.near
    peers = {key: (peer.stats().allowed_ips, peer.stats().endpoint) for key, peer in near.peers.items()}
    stats = near.stats()
    return near._outside.device.private_key, near.addresses, near.config, peers, stats.mtu, stats.listen_port


async def still_works(ends: Ends) -> None:
    for version in (4, 6):
        (await ends.near.connect_socket(FAR[version], 7000, timeout=10)).close()


@pytest.mark.network
@pytest.mark.parametrize("what", HALF_WRITTEN)
def test_incomplete_file_changes_nothing(what: str, tmp_path: Path, device: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            before = state_of(ends)
            key = generate().base64()
            path = tmp_path / "near.conf"
            path.write_text(HALF_WRITTEN[what].format(key=key, cut=key[:20]))
            path.chmod(0o600)
            with pytest.raises(wyrmhole.ConfigFileError, match=r"near\.conf"):
                await ends.near.reload(path)
            assert state_of(ends) == before
            await still_works(ends)

    run(scenario())


@pytest.mark.network
def test_device_is_unchanged_if_the_stack_refuses(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            before, configure = state_of(ends), ends.near.stack.configure

            def refuse(addresses: Sequence[Any], routes: Sequence[Any], mtu: int) -> None:
                configure(addresses, routes, mtu)
                if mtu == 1000:  # after IPv6 was removed
                    raise OSError(errno.ENOBUFS, "no room for addresses")

            monkeypatch.setattr(ends.near.stack, "configure", refuse)
            new = ends.near_text.replace("fd66::1/64\n", "10.66.0.50/24\nMTU = 1000\n").replace(
                "/24, fd66::2", "/32, fd66::2"
            )
            with pytest.raises(wyrmhole.TunnelError, match="not reloaded, the tunnel is unchanged: no room") as caught:
                await ends.near.reload(new)
            assert caught.value.errno == errno.ENOBUFS
            assert state_of(ends) == before
            await still_works(ends)

    run(scenario())


@pytest.mark.network
def test_stack_is_restored_if_the_device_refuses(device: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            before = state_of(ends)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                taken.bind(("0.0.0.0", 0))
                port = taken.getsockname()[1]
                new = ends.near_text.replace("[Peer]", f"MTU = 1300\nListenPort = {port}\n[Peer]")
                with pytest.raises(wyrmhole.ConfigError, match=str(port)):
                    await ends.near.reload(new.replace(", fd66::1/64", ", 10.66.0.44/24"))
            assert state_of(ends) == before
            await still_works(ends)

    run(scenario())


@pytest.mark.network
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"persistent_keepalive": 65536}, "PersistentKeepalive is 65536; expected 0 to 65535"),
        ({"persistent_keepalive": -1}, "PersistentKeepalive"),
        ({"endpoint": wyrmhole.ConfigEndpoint("127.0.0.1", 70000)}, "port"),
    ],
)
def test_added_peer_is_checked_like_one_in_a_file(options: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            with pytest.raises(ValueError, match=message):
                await ends.near.peers.add(generate().public_key(), **options)
            assert len(ends.near.peers) == 1

    run(scenario())


@pytest.mark.network
def test_own_public_key_is_refused_as_a_peer() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            private = ends.near.config.interface.private_key
            assert private is not None
            with pytest.raises(ValueError, match="own"):
                await ends.near.peers.add(private.public_key())

    run(scenario())


@pytest.mark.parametrize(("name", "value"), [("listen_port", 65536), ("mtu", 10), ("fwmark", 1 << 32)])
def test_config_that_cannot_be_written_is_refused(name: str, value: int) -> None:
    config = wyrmhole.Config.parse(near_config(generate(), generate(), 9))
    check_config(config)
    setattr(config.interface, name, value)
    with pytest.raises(wyrmhole.ConfigFileError, match=str(value)):
        check_config(config)


# A peer whose name does not resolve


GONE = "[Peer]\n# friendly_name = gone\nPublicKey = {}\nAllowedIPs = 10.66.1.0/24\nEndpoint = gone.invalid:51820\n"


@pytest.mark.network
def test_unresolvable_peer_does_not_prevent_open_and_reload(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        gone = GONE.format(generate().public_key().base64())
        async with tunnels() as ends, wyrmhole.open(ends.near_text + gone) as near:
            assert "gone.invalid:51820" in caplog.text
            await near.ping(FAR_V4)
            following = near.events()
            await near._outside.endpoints.check()
            event = await anext(event async for event in following if isinstance(event, wyrmhole.EndpointUnresolved))
            assert event.peer.name == "gone" and "gone.invalid" in event.reason

            more = ends.near_text.replace("10.66.0.2/24", "10.66.0.2/24, 10.77.0.0/16")
            await near.reload(more + gone.replace("gone.invalid", "left.invalid"))
            assert "left.invalid" in caplog.text
            assert any("10.77.0.0/16" in peer.stats().allowed_ips for peer in near.peers.values())
            await near.ping(FAR_V4)

    run(scenario())


@pytest.mark.network
def test_tunnel_without_a_usable_peer_is_refused() -> None:
    async def scenario() -> None:
        text = near_config(generate(), generate(), 51820, host="gone.invalid")
        with pytest.raises(socket.gaierror, match=r"gone\.invalid:51820"):
            await wyrmhole.open(text)
        async with tunnels() as ends:
            with pytest.raises(socket.gaierror, match=r"gone\.invalid"):
                await ends.near.reload(text)
            await ends.near.ping(FAR_V4)

    run(scenario())


@pytest.mark.network
def test_peer_keeps_its_address_if_its_name_disappears() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await ends.near.ping(FAR_V4)
            host = ends.near_text.replace("Endpoint = 127.0.0.1", "Endpoint = gone.invalid")
            await ends.near.reload(host)
            await ends.near.ping(FAR_V4)
            assert next(iter(ends.near.peers.values())).stats().endpoint == f"127.0.0.1:{ends.far.stats().listen_port}"

    run(scenario())


# Name servers outside AllowedIPs


def test_addresses_covered_by_allowed_ips() -> None:
    from ipaddress import ip_address

    prefixes = [Prefix.parse("10.0.0.0/8"), Prefix.parse("fd00::/64"), Prefix.parse("192.0.2.7/32")]
    assert leads_to(prefixes, ip_address("10.200.0.1")) and leads_to(prefixes, ip_address("fd00::7"))
    assert leads_to(prefixes, ip_address("192.0.2.7")) and leads_to([Prefix.parse("0.0.0.0/0")], ip_address("8.8.8.8"))
    assert not leads_to(prefixes, ip_address("8.8.8.8")) and not leads_to(prefixes, ip_address("fd00:0:0:1::1"))
    assert not leads_to([Prefix.parse("0.0.0.0/0")], ip_address("::1"))


@pytest.mark.network
def test_name_server_outside_of_the_tunnel_is_reported_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with tunnels(near_more="DNS = 8.8.8.8\n") as ends:
            assert "DNS server 8.8.8.8 is in no peer's AllowedIPs" in caplog.text
            with pytest.raises(socket.gaierror, match=r"8\.8\.8\.8 is in no peer's AllowedIPs") as caught:
                await ends.near.getaddrinfo("web.internal", 80)
            assert "Do53" not in str(caught.value)
            caplog.clear()
            await ends.near.reload(ends.near_text.replace("DNS = 8.8.8.8", f"DNS = {NEAR_V4}, {FAR_V4}"))
            assert not caplog.text

    run(scenario())


@pytest.mark.network
@pytest.mark.parametrize("engine", ["portable", "native"])
def test_long_list_of_allowed_ips_opens_and_reloads(engine: str) -> None:
    async def scenario() -> None:
        ips = ", ".join(f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.0/25" for number in range(10_000))
        text = near_config(generate(), generate(), 9)
        async with wyrmhole.open(text.replace("10.66.0.2/24", ips), engine=engine) as near:
            (peer,) = near.peers.values()
            assert len(peer.stats().allowed_ips) == 10_001
            await near.reload(text)
            assert len(peer.stats().allowed_ips) == 2

    run(scenario())
