"""`up` and `down` on real interfaces: MTU, routes, unresolvable names, many allowed ips, and saved state."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.cli.quick.lab import (
    Quick,
    conf,
    way,
)
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.lab import Lab
from tests.netns.node import Key, peer_section

pytestmark = pytest.mark.network


# Like wg-quick of 2026


def test_narrowest_path_to_a_peer_determines_the_mtu(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1", "mtu", "1300")
    peers = [("10.1.0.0/16", "198.51.100.2:1"), ("10.2.0.0/16", "192.0.2.1:2"), ("10.3.0.0/16", "203.0.113.1:3")]
    quick = Quick(client, tmp_path, conf("10.0.0.0/16", endpoint="192.0.2.1:9"))
    for allowed_ips, endpoint in peers:
        quick.file.write_text(
            quick.file.read_text() + peer_section(Key.generate().public, allowed_ips, endpoint=endpoint)
        )
    quick(WYRMHOLE, "up")
    assert "mtu 1220 " in client.run("ip", "link", "show", quick.name)
    quick(WYRMHOLE, "down")


def test_settings_of_pre_up_are_kept_and_get_routes(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    key, peer = Key.generate(), Key.generate().public
    (tmp_path / "key").write_text(key.private)
    hook = f"PreUp = wg set %i private-key {tmp_path}/key peer {peer} allowed-ips 10.55.0.0/16\n"
    quick = Quick(client, tmp_path, f"[Interface]\nAddress = 10.77.0.1/24\n{hook}")
    quick(WYRMHOLE, "up")
    assert client.run("wg", "show", quick.name, "public-key").strip() == key.public
    assert "10.55.0.0/16" in client.run("ip", "route", "show", "dev", quick.name)
    quick(WYRMHOLE, "down")


# Names


def test_unresolvable_peer_does_not_stop_the_others(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    lost = Key.generate().public
    quick = Quick(client, tmp_path, conf("10.0.0.0/16"))
    quick.file.write_text(quick.file.read_text() + peer_section(lost, "10.1.0.0/16", endpoint="gone.invalid:51820"))
    result = quick.try_run("up", WG_ENDPOINT_RESOLUTION_RETRIES="0")
    assert result.returncode == 0
    assert f"wyrmhole set {quick.name} peer {lost} endpoint gone.invalid:51820" in result.stderr
    assert "(none)" in client.run("wg", "show", quick.name, "endpoints")
    assert "10.1.0.0/16" in client.run("ip", "route", "show", "dev", quick.name)
    quick(WYRMHOLE, "down")
    quick.file.write_text(conf("10.0.0.0/16", endpoint="gone.invalid:51820"))
    result = quick.try_run("up", WG_ENDPOINT_RESOLUTION_RETRIES="0")
    assert result.returncode == 1 and "no peer can be reached: endpoint gone.invalid:51820" in result.stderr
    assert quick.is_gone()


# Sizes


def test_thousands_of_allowed_ips_become_routes(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    narrow = ", ".join(f"20.{number >> 8}.{number & 255}.0/25" for number in range(3000))
    quick = Quick(client, tmp_path, conf(f"{narrow}, 20.0.0.0/8, 10.77.0.5/32"))
    quick(WYRMHOLE, "up")
    routes = client.run("ip", "route", "show", "dev", quick.name).splitlines()
    assert len(routes) == 3002, "one for each, but 10.77.0.5 is within the network of Address"
    quick(WYRMHOLE, "down")


def test_state_that_cannot_be_saved_is_not_lost(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", "SaveConfig = true\n"))
    quick(WYRMHOLE, "up")
    tmp_path.chmod(0o500)
    program = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec "
    words = ("unshare", "-m", "sh", "-c", f"{program}{WYRMHOLE} down {quick.file}")
    result = client.try_run(*words)
    assert result.returncode == 1 and f"cannot save the running state into {quick.file}: Read-only" in result.stderr
    assert f"{quick.name} stays up" in result.stderr and not quick.is_gone()
    quick(WYRMHOLE, "down")
    assert quick.is_gone() and "ListenPort" in quick.file.read_text()


def test_save_keeps_link_local_addresses_and_scopes_by_name(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    link = way(client, "192.0.2.2")
    text = conf("10.0.0.0/8", address="10.77.0.1/24, fe80::77/64", endpoint=f"[fe80::5%{link}]:51821")
    quick = Quick(client, tmp_path, text)
    quick(WYRMHOLE, "up")
    quick(WYRMHOLE, "save")
    saved = quick.file.read_text()
    assert "Address = 10.77.0.1/24, fe80::77/64\n" in saved
    assert f"Endpoint = [fe80::5%{link}]:51821\n" in saved
    quick(WYRMHOLE, "down")


def test_link_local_endpoint_uses_the_path_of_its_link(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    client.ip("link", "add", "other", "type", "veth", "peer", "name", "far")
    client.ip("link", "set", "other", "mtu", "1400", "up")
    client.ip("link", "set", "far", "mtu", "1400", "up")
    for link, mtu in (("other", 1320), (way(client, "192.0.2.2"), 1420)):
        quick = Quick(client, tmp_path, conf("10.0.0.0/8", endpoint=f"[fe80::5%{link}]:51821"))
        quick(WYRMHOLE, "up")
        assert f"mtu {mtu} " in client.run("ip", "link", "show", quick.name)
        quick(WYRMHOLE, "down")


def test_concurrent_saves_leave_one_complete_result(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", "ListenPort = 51897\n"))
    quick(WYRMHOLE, "up")
    client.run("wg", "set", quick.name, "listen-port", "51898")
    threads = [threading.Thread(target=quick, args=(WYRMHOLE, "save")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "ListenPort = 51898" in quick.file.read_text()
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    quick(WYRMHOLE, "down")


def test_narrow_path_keeps_ipv6_on_the_interface(lab: Lab, tmp_path: Path) -> None:
    """A path MTU of 1300, as over two tunnels, would leave 1220, but IPv6 needs 1280."""
    client, _, _ = lab.routed()
    client.ip("link", "set", client.links[0], "mtu", "1300")
    quick = Quick(client, tmp_path, conf("10.77.0.0/24, fd77::/64", address="10.77.0.1/24, fd77::1/64"))
    quick(WYRMHOLE, "up")
    assert " mtu 1280 " in client.run("ip", "link", "show", quick.name)
    assert "fd77::/64" in client.run("ip", "-6", "route", "show", "dev", quick.name)
    quick(WYRMHOLE, "down")
