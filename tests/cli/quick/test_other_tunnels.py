"""`up` and `down` with other tunnels, and with rules and routes that already exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.quick.lab import (
    EVERYTHING,
    Quick,
    conf,
    traces,
    way,
)
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.lab import Lab

pytestmark = pytest.mark.network


@pytest.mark.parametrize("more", ["", "PostUp = false\n"])
def test_split_tunnel_leaves_the_rules_of_a_full_tunnel(lab: Lab, tmp_path: Path, more: str) -> None:
    """Its packets carry the mark of the full tunnel, so that they bypass it."""
    client, _, _ = lab.routed()
    full = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"))
    full(WYRMHOLE, "up")
    before = traces(client)
    split = Quick(client, tmp_path, conf("10.88.0.0/24", f"FwMark = 51820\n{more}", "10.88.0.1/32"))
    assert split.try_run("up").returncode == (1 if more else 0)
    if not more:
        split(WYRMHOLE, "down")
    assert traces(client) == before and way(client) == full.name
    full(WYRMHOLE, "down")


def test_rules_of_a_crashed_full_tunnel_are_not_the_split_tunnels(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    full = Quick(client, tmp_path, conf("0.0.0.0/0"))
    split = Quick(client, tmp_path, conf("10.88.0.0/24", "FwMark = 51820\n", "10.88.0.1/32"))
    full(WYRMHOLE, "up")
    split(WYRMHOLE, "up")
    client.ip("link", "set", full.name, "down")
    before = client.run("ip", "rule")
    split(WYRMHOLE, "down")
    assert client.run("ip", "rule") == before, "its routes are missing only until the next up"
    full(WYRMHOLE, "down")
    assert "51820" not in client.run("ip", "rule")


def test_tunnels_that_come_up_at_once_get_separate_tables(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    before = traces(client)
    addresses = [f"10.{number}.0.1/24, fd{number}::1/64" for number in (71, 72, 73)]
    tunnels = [Quick(client, tmp_path, conf(EVERYTHING, address=address)) for address in addresses]
    ups = [client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.PIPE) for quick in tunnels]
    message = [up.communicate(timeout=100)[0] for up in ups]
    assert [up.returncode for up in ups] == [0, 0, 0], message
    for version in ("-4", "-6"):
        rules = client.run("ip", version, "rule")
        assert sorted(re.findall(r"lookup (518\d\d)", rules)) == ["51820", "51821", "51822"]
        assert rules.count("suppress_prefixlength 0") == 3
    for quick in tunnels:
        assert way(client) in {other.name for other in tunnels}
        quick(WYRMHOLE, "down")
    assert traces(client) == before


@pytest.mark.parametrize(
    "rules",
    [
        ["add priority 1 to 172.16.0.0/12 table main"],
        ["add priority 100 table local", "delete priority 0", "add priority 9 to 172.16.0.0/12 table main"],
    ],
    ids=["no-room", "local-table-behind-others"],
)
def test_up_works_with_crowded_rules(lab: Lab, tmp_path: Path, rules: list[str]) -> None:
    """A full tunnel comes up twice, because a rule left behind by the first `down` would prevent the second."""
    client, _, _ = lab.routed()
    for rule in rules:
        client.ip("rule", *rule.split())
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    for _ in range(2):
        quick(WYRMHOLE, "up")
        assert way(client) == quick.name
        assert way(client, "127.0.0.1") == "lo", "the local table comes first"
        tables = re.findall(r"suppress_prefixlength 0|lookup 51820", client.run("ip", "rule"))
        assert tables == ["suppress_prefixlength 0", "lookup 51820"]
        quick(WYRMHOLE, "down")
        assert traces(client) == before


def test_rules_made_by_ip_are_removed(lab: Lab, tmp_path: Path) -> None:
    """wg-quick adds them in this order, and without a free priority the kernel puts the second after the first."""
    client, _, _ = lab.routed()
    client.ip("rule", "add", "priority", "1", "to", "172.16.0.0/12", "table", "main")
    before = traces(client)
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    quick("wg-quick", "up")
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_saved_mark_is_replaced_if_its_table_is_in_use(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    first = Quick(client, tmp_path, conf("0.0.0.0/0"))
    saved = Quick(client, tmp_path, conf("0.0.0.0/0", "SaveConfig = true\nFwMark = 51820\n", "10.88.0.1/24"))
    before = traces(client)
    first(WYRMHOLE, "up")
    result = saved.try_run("up")
    assert result.returncode == 0 and f"table 51820 is {first.name}'s by now" in result.stderr
    assert client.run("wg", "show", saved.name, "fwmark").strip() == "0xca6d"
    saved(WYRMHOLE, "down")
    assert way(client) == first.name
    first(WYRMHOLE, "down")
    assert traces(client) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("FwMark = 51820\n", "FwMark = 51820: routing table 51820 has the default route of "),
        ("Table = 51820\n", "cannot add the route 0.0.0.0/0 in table 51820: EEXIST"),
        ("FwMark = 254\n", "FwMark = 254 would make the kernel's own table 254 the tunnel's"),
    ],
)
def test_table_in_use_is_refused(lab: Lab, tmp_path: Path, more: str, message: str) -> None:
    client, _, _ = lab.routed()
    first = Quick(client, tmp_path, conf("0.0.0.0/0"))
    first(WYRMHOLE, "up")
    before = traces(client)
    second = Quick(client, tmp_path, conf("0.0.0.0/0", more, "10.88.0.1/24"))
    result = second.try_run("up")
    assert result.returncode == 1 and message in result.stderr
    assert second.is_gone() and traces(client) == before
    first(WYRMHOLE, "down")


def test_conflicting_route_of_another_interface_is_named(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("192.0.2.0/24"))
    client.ip("route", "add", "10.99.0.0/16", "via", "192.0.2.1")
    quick.file.write_text(conf("10.99.0.0/16"))
    before = traces(client)
    result = quick.try_run("up")
    assert result.returncode == 1 and "(eth0 has it: take it out of AllowedIPs there or here)" in result.stderr
    assert quick.is_gone() and traces(client) == before
    client.ip("route", "add", "default", "via", "192.0.2.1", "table", "1234")
    quick.file.write_text(conf("0.0.0.0/0", "Table = 1234\n"))
    result = quick.try_run("up")
    assert result.returncode == 1 and "(eth0 has it: take it out of AllowedIPs, or give another Table)" in result.stderr
    assert quick.is_gone()
