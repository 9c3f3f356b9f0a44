"""`show --drops` prints a line for each reason with its meaning, per interface and per peer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.quick.lab import laboratory
from tests.cli.wyrmhole_command import WYRMHOLE, refusal
from tests.netns.host import until
from tests.netns.implementations import SUBJECT
from wyrmhole.cli import show_text
from wyrmhole.device.status import DropCounts
from wyrmhole.protocol.drops import MEANINGS, DropReason
from wyrmhole.protocol.keys import PublicKey

ONE, TWO = PublicKey(bytes([1]) * 32), PublicKey(bytes([2]) * 32)


def text(counts: DropCounts | None) -> list[str]:
    return show_text.plain(show_text.drops_text("wg0", counts, [ONE, TWO])).splitlines()


def test_reasons_are_listed_with_meaning_by_frequency() -> None:
    lines = text(DropCounts({"bad_mac1": 3, "no_route": 12, "bad_source": 3}, {TWO: {"bad_source": 3}}))
    assert lines == [
        "interface: wg0",
        f"  no_route         12  {MEANINGS[DropReason.NO_ROUTE]}",
        f"  bad_mac1          3  {MEANINGS[DropReason.BAD_MAC1]}",
        f"  bad_source        3  {MEANINGS[DropReason.BAD_SOURCE]}",
        "",
        f"peer: {TWO.base64()}",
        f"  bad_source        3  {MEANINGS[DropReason.BAD_SOURCE]}",
    ]


def test_interface_without_drops_is_reported() -> None:
    assert text(DropCounts({}, {})) == ["interface: wg0", "  nothing was dropped"]


def test_daemon_without_drop_counts_is_reported() -> None:
    assert text(None) == ["interface: wg0", "  the daemon of wg0 does not report what it drops"]


def test_unknown_reason_is_shown_by_its_name() -> None:
    assert text(DropCounts({"from_the_future": 1}, {}))[1] == "  from_the_future        1"


def test_drops_cannot_be_combined_with_a_field() -> None:
    assert "--drops cannot be combined with a field" in refusal("show", "wg0", "transfer", "--drops", status=2)


@pytest.mark.network
def test_drops_of_a_running_interface_are_shown_per_peer(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        a, b = lab.neighbours()
        one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint="192.0.2.2:51821")
        a.ping(two.addresses[0])
        # Packets of a have a source address that b no longer allows.
        two.set("peer", one.key.public, "allowed-ips", "10.255.0.0/16")
        assert not a.can_ping(two.addresses[0])
        until(lambda: "bad_source" in b.run(WYRMHOLE, "show", two.name, "--drops"), "drop")
        shown = b.run(WYRMHOLE, "show", two.name, "--drops")
        assert shown.index("interface: ") < shown.index(f"peer: {one.key.public}")
        assert shown.count("not in its allowed IPs here") == 2
        document = json.loads(b.run(WYRMHOLE, "show", two.name, "--drops", "--json"))
        assert document["drops"]["bad_source"] >= 1
        assert document["peers"][0]["drops"] == {"bad_source": document["drops"]["bad_source"]}
        assert "drops" not in json.loads(b.run(WYRMHOLE, "show", two.name, "--json"))


@pytest.mark.network
def test_wireguard_go_has_no_drop_counts(tmp_path: Path) -> None:
    with laboratory(tmp_path) as lab:
        a, b = lab.neighbours()
        one, _ = lab.tunnel(a, "wireguard-go", b, SUBJECT, endpoint="192.0.2.2:51821")
        shown = a.run(WYRMHOLE, "show", one.name, "--drops")
        assert f"the daemon of {one.name} does not report what it drops" in shown
        assert json.loads(a.run(WYRMHOLE, "show", one.name, "--drops", "--json"))["drops"] is None
        assert "peer: " in a.run(WYRMHOLE, "show", one.name), "its daemon still answers"
