"""`up` and `down` with a dead daemon, a renamed interface, or an interface that is not ours."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.quick.lab import (
    EVERYTHING,
    Quick,
    conf,
    traces,
    way,
    with_dns,
    wyrmhole,
)
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.host import until
from tests.netns.lab import Lab
from tests.netns.node import Key, peer_section

pytestmark = pytest.mark.network


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("flushed", [False, True])
def test_down_works_without_the_daemon(lab: Lab, tmp_path: Path, number: signal.Signals, flushed: bool) -> None:
    """`flushed`: another program has replaced the firewall's rules, so the mark in them is gone."""
    client, _, _ = lab.routed()
    hooks = f"PreDown = echo before >> {tmp_path}/hooks\nPostDown = echo after >> {tmp_path}/hooks; false\n"
    text = conf(EVERYTHING, f"DNS = 10.77.0.9\nSaveConfig = true\n{hooks}")
    quick = Quick(client, tmp_path, text, with_dns(tmp_path))
    before = traces(client)
    quick(WYRMHOLE, "up")
    if flushed:
        client.run("nft", "flush", "ruleset")
    os.kill(quick.daemon(), number)
    result = quick.try_run("down")
    assert result.returncode == 0, result.stderr
    assert quick.is_gone() and traces(client) == before and quick.file.read_text() == text
    assert (tmp_path / "dns").read_text().splitlines()[-1].startswith("-d")
    assert (tmp_path / "hooks").read_text() == "before\nafter\n"
    again = quick.try_run("down")
    assert again.returncode == 1 and "is not up" in again.stderr


def test_down_after_a_crash_leaves_other_tunnels_alone(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    first, second = (Quick(client, tmp_path, conf("0.0.0.0/0", "", f"10.{n}.0.1/24")) for n in (71, 72))
    first(WYRMHOLE, "up")
    before = traces(client)
    second(WYRMHOLE, "up")
    client.run("nft", "delete", "table", "ip", f"wg-quick-{second.name}")
    os.kill(second.daemon(), signal.SIGKILL)
    second(WYRMHOLE, "down")
    assert traces(client) == before and way(client) == first.name
    first(WYRMHOLE, "down")


def test_up_after_a_crash_cleans_up_first(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    before = traces(client)
    quick(WYRMHOLE, "up")
    up = traces(client)
    os.kill(quick.daemon(), signal.SIGKILL)
    until(lambda: quick.host.try_run("ip", "link", "show", quick.name).returncode, "the interface is gone")
    quick(WYRMHOLE, "up")
    assert traces(client) == up
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_down_refuses_an_interface_without_a_daemon(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    for words in (["type", "veth", "peer", "name", "other"], None):
        if words:
            client.ip("link", "add", quick.name, *words)
        else:
            client.ip("tuntap", "add", "dev", quick.name, "mode", "tun")
        result = quick.try_run("down")
        assert result.returncode == 1 and "no user-space daemon serves it" in result.stderr
        client.ip("link", "delete", quick.name)


def test_down_reports_a_renamed_interface_with_a_remedy(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    other = Quick(client, tmp_path, conf("10.0.0.0/8"))
    before = traces(client)
    quick(WYRMHOLE, "up")
    for words in (["down"], ["name", other.name], ["up"]):
        client.ip("link", "set", quick.name if words[0] != "up" else other.name, *words)
    back = f"`ip link set {other.name} down; ip link set {other.name} name {quick.name}`"
    for named, message in ((quick, "was renamed to"), (other, f"the daemon of {quick.name}")):
        result = named.try_run("down")
        assert result.returncode == 1 and message in result.stderr and back in result.stderr
        assert len(result.stderr.splitlines()) == 1
    client.ip("link", "set", other.name, "down")
    client.ip("link", "set", other.name, "name", quick.name)
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_syncconf_keeps_the_mark_of_up(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    before = traces(client)
    quick(WYRMHOLE, "up")
    stripped = tmp_path / "stripped.conf"
    stripped.write_text(wyrmhole(client, "strip", str(quick.file)))
    wyrmhole(client, "syncconf", quick.name, str(stripped))
    assert client.run("wg", "show", quick.name, "fwmark").strip() == "0xca6c"
    # wg(8) removes the mark, but the rules are still found.
    client.run("wg", "syncconf", quick.name, str(stripped))
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_syncconf_changes_all_peers_with_resolvable_names(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick, lost = Quick(client, tmp_path, conf("10.0.0.0/16")), Key.generate().public
    quick(WYRMHOLE, "up")
    stripped = tmp_path / "stripped.conf"
    text = wyrmhole(client, "strip", str(quick.file))
    stripped.write_text(
        text.replace("10.0.0.0/16", "10.9.0.0/16") + peer_section(lost, "10.1.0.0/16", endpoint="gone.invalid:5")
    )
    result = client.try_run(
        WYRMHOLE, "syncconf", quick.name, str(stripped), environ={"WG_ENDPOINT_RESOLUTION_RETRIES": "0"}
    )
    assert result.returncode == 0 and f"peer {lost} endpoint gone.invalid:5" in result.stderr
    allowed = client.run("wg", "show", quick.name, "allowed-ips")
    assert "10.9.0.0/16" in allowed and "10.1.0.0/16" in allowed
    quick(WYRMHOLE, "down")


def test_loser_of_two_concurrent_ups_leaves_the_winner_alone(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    before = traces(client)
    ups = [client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.PIPE) for _ in range(2)]
    message = [up.communicate(timeout=100)[0] for up in ups]
    assert sorted(up.returncode for up in ups) == [0, 1], message
    assert way(client) == quick.name and client.run("wg", "show", quick.name, "peers").strip()
    quick(WYRMHOLE, "down")
    assert traces(client) == before and quick.is_gone()
