"""`up` and `down` where something else is in the way: other tunnels, a daemon that died, signals, poor hosts."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.quick.lab import FAKE_RESOLVCONF, Quick, laboratory, traces, wyrmhole
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.host import Host, end, until
from tests.netns.lab import Lab
from tests.netns.node import SOCKETS, Key, peer_section

pytestmark = pytest.mark.network

EVERYTHING = "0.0.0.0/0, ::/0"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with laboratory(tmp_path) as lab:
        yield lab


def conf(allowed_ips: str, more: str = "", address: str = "10.77.0.1/24", endpoint: str = "198.51.100.2:51821") -> str:
    interface = f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = {address}\n{more}"
    return interface + peer_section(Key.generate().public, allowed_ips, endpoint=endpoint)


def way(host: Host, address: str = "8.8.8.8") -> str:
    """The interface by which packets to the address leave."""
    return host.run("ip", "route", "get", address).split(" dev ")[1].split()[0]


def program(folder: Path, name: str, script: str) -> Path:
    """A stand-in on the PATH. Returns its folder."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    file = programs / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return programs


# Other tunnels


@pytest.mark.parametrize("more", ["", "PostUp = false\n"])
def test_a_split_tunnel_leaves_the_rules_of_a_full_one(lab: Lab, tmp_path: Path, more: str) -> None:
    """Its packets carry the full tunnel's mark, so that they bypass it."""
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


def test_a_crashed_full_tunnel_is_not_taken_for_the_split_one_s(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    full = Quick(client, tmp_path, conf("0.0.0.0/0"))
    split = Quick(client, tmp_path, conf("10.88.0.0/24", "FwMark = 51820\n", "10.88.0.1/32"))
    full(WYRMHOLE, "up")
    split(WYRMHOLE, "up")
    client.ip("link", "set", full.name, "down")
    before = client.run("ip", "rule")
    split(WYRMHOLE, "down")
    assert client.run("ip", "rule") == before, "its routes are gone only until it is up again"
    full(WYRMHOLE, "down")
    assert "51820" not in client.run("ip", "rule")


def test_tunnels_that_come_up_at_once_get_a_table_each(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    before = traces(client)
    addresses = [f"10.{number}.0.1/24, fd{number}::1/64" for number in (71, 72, 73)]
    tunnels = [Quick(client, tmp_path, conf(EVERYTHING, address=address)) for address in addresses]
    ups = [client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.PIPE) for quick in tunnels]
    said = [up.communicate(timeout=100)[0] for up in ups]
    assert [up.returncode for up in ups] == [0, 0, 0], said
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
def test_the_rules_of_a_host_may_be_crowded(lab: Lab, tmp_path: Path, rules: list[str]) -> None:
    """A full tunnel comes up twice: a rule that the first `down` left behind would keep the second from it."""
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


def test_rules_that_ip_made_without_room_are_taken_back(lab: Lab, tmp_path: Path) -> None:
    """wg-quick makes them in this order, and the kernel puts the second behind the first."""
    client, _, _ = lab.routed()
    client.ip("rule", "add", "priority", "1", "to", "172.16.0.0/12", "table", "main")
    before = traces(client)
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    quick("wg-quick", "up")
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_a_saved_mark_whose_table_is_taken_is_given_up(lab: Lab, tmp_path: Path) -> None:
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
    ("more", "said"),
    [
        ("FwMark = 51820\n", "FwMark = 51820: routing table 51820 has the default route of "),
        ("Table = 51820\n", "cannot add the route 0.0.0.0/0 in table 51820: EEXIST"),
        ("FwMark = 254\n", "FwMark = 254 would make the kernel's own table 254 the tunnel's"),
    ],
)
def test_a_table_that_is_taken_is_refused(lab: Lab, tmp_path: Path, more: str, said: str) -> None:
    client, _, _ = lab.routed()
    first = Quick(client, tmp_path, conf("0.0.0.0/0"))
    first(WYRMHOLE, "up")
    before = traces(client)
    second = Quick(client, tmp_path, conf("0.0.0.0/0", more, "10.88.0.1/24"))
    result = second.try_run("up")
    assert result.returncode == 1 and said in result.stderr
    assert second.is_gone() and traces(client) == before
    first(WYRMHOLE, "down")


def test_a_route_that_another_interface_has_is_named(lab: Lab, tmp_path: Path) -> None:
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


# Daemons that died


def with_dns(folder: Path) -> Path:
    return program(folder, "resolvconf", FAKE_RESOLVCONF.format(record=folder / "dns").partition("\n")[2])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("flushed", [False, True])
def test_down_needs_no_daemon(lab: Lab, tmp_path: Path, number: signal.Signals, flushed: bool) -> None:
    """`flushed`: another program replaced the firewall's rules meanwhile, and the mark in them is gone."""
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


def test_down_after_a_crash_leaves_the_tunnels_that_live(lab: Lab, tmp_path: Path) -> None:
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


def test_up_after_a_crash_clears_up_first(lab: Lab, tmp_path: Path) -> None:
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


def test_down_leaves_what_is_no_daemon_s(lab: Lab, tmp_path: Path) -> None:
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


def test_a_renamed_interface_is_said_to_be_one(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    other = Quick(client, tmp_path, conf("10.0.0.0/8"))
    before = traces(client)
    quick(WYRMHOLE, "up")
    for words in (["down"], ["name", other.name], ["up"]):
        client.ip("link", "set", quick.name if words[0] != "up" else other.name, *words)
    back = f"`ip link set {other.name} down; ip link set {other.name} name {quick.name}`"
    for named, said in ((quick, "was renamed to"), (other, f"the daemon of {quick.name}")):
        result = named.try_run("down")
        assert result.returncode == 1 and said in result.stderr and back in result.stderr
        assert len(result.stderr.splitlines()) == 1
    client.ip("link", "set", other.name, "down")
    client.ip("link", "set", other.name, "name", quick.name)
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_syncconf_of_the_file_keeps_the_mark_of_up(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    before = traces(client)
    quick(WYRMHOLE, "up")
    stripped = tmp_path / "stripped.conf"
    stripped.write_text(wyrmhole(client, "strip", str(quick.file)))
    wyrmhole(client, "syncconf", quick.name, str(stripped))
    assert client.run("wg", "show", quick.name, "fwmark").strip() == "0xca6c"
    # wg(8) takes the mark away, and the rules are found all the same.
    client.run("wg", "syncconf", quick.name, str(stripped))
    quick(WYRMHOLE, "down")
    assert traces(client) == before


def test_syncconf_changes_the_peers_whose_names_are_known(lab: Lab, tmp_path: Path) -> None:
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


def test_of_two_ups_of_one_file_the_loser_leaves_the_winner_alone(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    before = traces(client)
    ups = [client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.PIPE) for _ in range(2)]
    said = [up.communicate(timeout=100)[0] for up in ups]
    assert sorted(up.returncode for up in ups) == [0, 1], said
    assert way(client) == quick.name and client.run("wg", "show", quick.name, "peers").strip()
    quick(WYRMHOLE, "down")
    assert traces(client) == before and quick.is_gone()


# Signals and the daemon's output

SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("line", ["exec sleep", "wyrmholed"])
@pytest.mark.parametrize("number", SIGNALS)
def test_an_up_that_a_signal_ends_leaves_nothing(lab: Lab, tmp_path: Path, number: signal.Signals, line: str) -> None:
    """`line`: what is announced when the signal comes; the daemon's start is under way, or a hook."""
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf(EVERYTHING, "PostUp = exec sleep 1000\n"))
    before = traces(client)
    # The tests may have been started in the background, where a shell has signals ignored.
    words = ("env", "--default-signal=HUP,INT,QUIT", WYRMHOLE, "up", str(quick.file))
    process = client.spawn(*words, output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        until(lambda: line in process.stdout.readline(), line)  # type: ignore[union-attr]
        process.send_signal(number)
        process.stdout.close()  # as a terminal that went away
        assert process.wait(60) == 128 + number
    finally:
        end(process)
    assert quick.is_gone() and traces(client) == before


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_a_hook_that_a_signal_ends_leaves_no_children(lab: Lab, tmp_path: Path, deaf: str) -> None:
    """Unless they left its process group, as what goes on after a hook does."""
    client, _ = lab.neighbours()
    own, other = (str(1_000_000 + number) for number in random.sample(range(10**6), 2))
    hook = f"{deaf}setsid sleep {other} & sleep {own} | cat; true"
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", f"PostUp = {hook}\n"))
    process = client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.DEVNULL)
    try:
        for seconds in (own, other):
            until(lambda seconds=seconds: sleepers(seconds), "the hook's children")  # type: ignore[misc]
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not sleepers(own)
        assert sleepers(other)
    finally:
        end(process)
        for pid in sleepers(own) + sleepers(other):
            os.kill(pid, signal.SIGKILL)
    assert quick.is_gone()


def sleepers(seconds: str) -> list[int]:
    words = ["pgrep", "--full", "--exact", f"sleep {seconds}"]
    return [int(pid) for pid in subprocess.run(words, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("environ", [{"LOG_LEVEL": "debug"}, {"LOG_LEVEL": "error"}, {"WG_PROCESS_FOREGROUND": "1"}])
def test_whoever_reads_all_that_up_says_does_not_wait_for_the_daemon(
    lab: Lab, tmp_path: Path, environ: dict[str, str]
) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    assert quick.try_run("up", **environ).returncode == 0
    log = SOCKETS / f"{quick.name}.log"
    assert log.stat().st_mode & 0o777 == 0o600
    assert ("Device started" in log.read_text()) == (environ.get("LOG_LEVEL") == "debug")
    quick(WYRMHOLE, "down")
    assert quick.is_gone()


@pytest.mark.parametrize("level", ["error", "debug"])
def test_up_v_lets_the_daemon_log_each_handshake_and_says_where(lab: Lab, tmp_path: Path, level: str) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    result = client.try_run(WYRMHOLE, "up", "-v", str(quick.file), environ=quick.environ | {"LOG_LEVEL": level})
    log = SOCKETS / f"{quick.name}.log"
    assert result.returncode == 0 and f"[#] wyrmholed logs to {log}\n" in result.stderr
    assert "Interface up requested" in log.read_text() and " - Starting" in log.read_text()


def test_up_q_and_down_q_print_no_steps(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    for action in ("up", "down"):
        result = client.try_run(WYRMHOLE, action, "-q", str(quick.file), environ=quick.environ)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = client.try_run(WYRMHOLE, "down", "-q", str(quick.file), environ=quick.environ)
    assert result.returncode == 1 and result.stderr.startswith("wyrmhole: ")


def test_a_port_that_is_taken_is_named_with_its_holder(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick, other = (Quick(client, tmp_path, conf("10.0.0.0/8", "ListenPort = 51899\n")) for _ in range(2))
    with client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 51899))
        result = quick.try_run("up")
    assert result.returncode == 1 and "UDP port 51899: Address already in use" in result.stderr
    assert f"(pid {os.getpid()}) has it" in result.stderr and quick.is_gone()
    other(WYRMHOLE, "up")
    assert f"the daemon of {other.name} (pid " in quick.try_run("up").stderr
    other(WYRMHOLE, "down")


# Like wg-quick of 2026


def test_the_narrowest_way_to_a_peer_sets_the_mtu(lab: Lab, tmp_path: Path) -> None:
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


def test_what_pre_up_set_stays_and_gets_routes(lab: Lab, tmp_path: Path) -> None:
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


def test_a_peer_without_an_address_does_not_keep_the_others_down(lab: Lab, tmp_path: Path) -> None:
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


# Hosts that lack something


def read_only_sysctls(quick: Quick) -> subprocess.CompletedProcess[str]:
    script = (
        f"mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {WYRMHOLE} up {quick.file}"
    )
    words = ["unshare", "-m", "ip", "netns", "exec", quick.host.name, "sh", "-c", script]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("valid_mark", "rp_filter", "status", "said"),
    [
        ("1", "1", 0, ""),
        ("0", "2", 0, "it matters only with a strict rp_filter, which is off here"),
        ("0", "1", 1, "the strict rp_filter of eth0 would drop the answers"),
    ],
)
def test_sysctls_that_cannot_be_written(
    lab: Lab, tmp_path: Path, valid_mark: str, rp_filter: str, status: int, said: str
) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv4.conf.all.src_valid_mark", valid_mark)
    client.sysctl("net.ipv4.conf.all.rp_filter", "0")
    client.sysctl("net.ipv4.conf.eth0.rp_filter", rp_filter)
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    before = traces(client)
    result = read_only_sysctls(quick)
    assert result.returncode == status and said in result.stderr, result.stderr
    assert ("--sysctl net.ipv4.conf.all.src_valid_mark=1" in result.stderr) == bool(said)
    if not status:
        quick(WYRMHOLE, "down")
    assert quick.is_gone() and traces(client) == before


def test_ipv6_that_is_switched_off_is_left_out(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    client.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"))
    result = quick.try_run("up")
    assert result.returncode == 0 and "left out the address fd77::1/64" in result.stderr, result.stderr
    assert "left out the routes to ::/0" in result.stderr
    assert way(client) == quick.name
    quick(WYRMHOLE, "down")
    assert traces(client) == before
    alone = Quick(client, tmp_path, conf("::/0", address="fd77::1/64"))
    result = alone.try_run("up")
    assert result.returncode == 1 and "no Address of the file can be used: IPv6 is switched off" in result.stderr
    assert alone.is_gone() and traces(client) == before


def test_ipv6_that_only_others_have_is_not_left_to_them(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    result = quick.try_run("up")
    assert result.returncode == 1 and "packets to ::/0 would leave outside the tunnel" in result.stderr
    assert quick.is_gone() and traces(client) == before


def test_an_mtu_below_that_of_ipv6_leaves_ipv6_out(lab: Lab, tmp_path: Path) -> None:
    """The kernel takes IPv6 and its addresses from such an interface, and says nothing."""
    client, _, _ = lab.routed()
    more, mtu = "MTU = 1200\n", 1200
    quick = Quick(client, tmp_path, conf(EVERYTHING, more, address="10.77.0.1/24, fd77::1/64"))
    before = traces(client)
    result = quick.try_run("up")
    assert result.returncode == 1 and f"MTU {mtu} is below 1280, the least for IPv6, but other" in result.stderr
    assert "packets to ::/0 would leave outside the tunnel; set MTU to 1280 or more" in result.stderr
    assert quick.is_gone() and traces(client) == before
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    result = quick.try_run("up")
    assert result.returncode == 0 and "left out the address fd77::1/64" in result.stderr, result.stderr
    assert way(client) == quick.name
    quick(WYRMHOLE, "down")


WITHOUT_IPV6 = """
import ctypes, os, struct, sys
# seccomp(2): socket(AF_INET6, ...) fails with EAFNOSUPPORT, as where the kernel was started with ipv6.disable=1.
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, {socket}), (0x20, 0, 0, 16), (0x15, 0, 1, 10)]
steps += [(6, 0, 0, 0x50061), (6, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *step) for step in steps)
text = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
SOCKET = {"x86_64": 41, "aarch64": 198}


@pytest.mark.skipif(os.uname().machine not in SOCKET, reason="the filter knows two architectures")
def test_a_kernel_without_ipv6_is_enough_for_ipv4(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"))
    wrapper = tmp_path / "without_ipv6.py"
    wrapper.write_text(WITHOUT_IPV6.format(socket=SOCKET[os.uname().machine]))
    result = client.try_run(sys.executable, str(wrapper), WYRMHOLE, "up", str(quick.file))
    assert result.returncode == 0 and "this kernel has no IPv6: left out the routes to ::/0" in result.stderr
    assert way(client) == quick.name
    client.run(sys.executable, str(wrapper), WYRMHOLE, "down", str(quick.file))
    assert quick.is_gone() and traces(client) == before


NO_NF_TABLES = "echo 'Unable to initialize Netlink socket: Protocol not supported' >&2; exit 1"


def test_where_the_kernel_lacks_nf_tables_iptables_is_used(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    program(tmp_path, "nft", NO_NF_TABLES)
    for name in ("iptables", "ip6tables"):
        program(tmp_path, f"{name}-restore", f"cat >> {tmp_path}/{name}")
        program(tmp_path, f"{name}-save", f"sed 's/^-I/-A/' {tmp_path}/{name} 2>/dev/null; exit 0")
    programs = tmp_path / "bin"
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"), programs)
    quick(WYRMHOLE, "up")
    v4, v6 = ((tmp_path / name).read_text() for name in ("iptables", "ip6tables"))
    assert "-d 10.77.0.1 -m addrtype ! --src-type LOCAL -j DROP" in v4 and "-d fd77::1 " in v6
    quick(WYRMHOLE, "down")
    for name, rules in (("iptables", v4), ("ip6tables", v6)):
        assert (tmp_path / name).read_text() == rules + rules.replace("-I", "-D")


def test_without_a_firewall_a_default_route_is_refused(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    program(tmp_path, "nft", NO_NF_TABLES)
    programs = program(tmp_path, "iptables-restore", "echo 'no such table: raw' >&2; exit 3")
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"), programs)
    before = traces(client)
    result = quick.try_run("up")
    assert result.returncode == 1 and quick.is_gone() and traces(client) == before
    for said in ("Protocol not supported", "iptables-restore refused", "no such table: raw", "Table = off"):
        assert said in result.stderr
    quick.file.write_text(conf("10.0.0.0/8"))
    quick(WYRMHOLE, "up")
    quick(WYRMHOLE, "down")
    assert quick.is_gone(), "a split tunnel needs no firewall"


def test_a_program_for_name_servers_that_fails_does_not_keep_a_tunnel_up(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", "DNS = 10.77.0.9\n"), with_dns(tmp_path))
    quick(WYRMHOLE, "up")
    program(tmp_path, "resolvconf", "echo 'not mine' >&2; exit 1")
    result = quick.try_run("down")
    assert result.returncode == 0 and "the record of name servers may be left" in result.stderr
    assert quick.is_gone()


# Sizes


def test_thousands_of_allowed_ips_become_routes(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    narrow = ", ".join(f"20.{number >> 8}.{number & 255}.0/25" for number in range(3000))
    quick = Quick(client, tmp_path, conf(f"{narrow}, 20.0.0.0/8, 10.77.0.5/32"))
    quick(WYRMHOLE, "up")
    routes = client.run("ip", "route", "show", "dev", quick.name).splitlines()
    assert len(routes) == 3002, "each of them and the network of Address, which has 10.77.0.5 already"
    quick(WYRMHOLE, "down")


def test_a_state_that_cannot_be_saved_is_not_lost(lab: Lab, tmp_path: Path) -> None:
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


def test_the_path_to_a_link_local_endpoint_is_that_of_its_link(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    client.ip("link", "add", "other", "type", "veth", "peer", "name", "far")
    client.ip("link", "set", "other", "mtu", "1400", "up")
    client.ip("link", "set", "far", "mtu", "1400", "up")
    for link, mtu in (("other", 1320), (way(client, "192.0.2.2"), 1420)):
        quick = Quick(client, tmp_path, conf("10.0.0.0/8", endpoint=f"[fe80::5%{link}]:51821"))
        quick(WYRMHOLE, "up")
        assert f"mtu {mtu} " in client.run("ip", "link", "show", quick.name)
        quick(WYRMHOLE, "down")


def test_two_saves_at_once_leave_one_of_the_two(lab: Lab, tmp_path: Path) -> None:
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


def test_a_narrow_path_does_not_take_ipv6_off_the_interface(lab: Lab, tmp_path: Path) -> None:
    """Over a path of 1300, as over two tunnels, 1220 would be left, and IPv6 needs 1280."""
    client, _, _ = lab.routed()
    client.ip("link", "set", client.links[0], "mtu", "1300")
    quick = Quick(client, tmp_path, conf("10.77.0.0/24, fd77::/64", address="10.77.0.1/24, fd77::1/64"))
    quick(WYRMHOLE, "up")
    assert " mtu 1280 " in client.run("ip", "link", "show", quick.name)
    assert "fd77::/64" in client.run("ip", "-6", "route", "show", "dev", quick.name)
    quick(WYRMHOLE, "down")
