"""What happens to a tunnel in its life: roaming, NAT, narrow paths, renewals, changes, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.interop.lab import BIN, Lab, Node, connect, hosts_behind_router, laboratory, pair_of_hosts, run, until
from tests.net.namespaces import Namespace

pytestmark = pytest.mark.network


def two(lab: Lab, other: str = "wyrmhole") -> tuple[Node, Node]:
    a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node(other, lab.hosts[1], 2)
    connect(a, b)
    a.reach(b)
    return a, b


# The outer network


@pytest.mark.parametrize("other", ["wyrmhole", "wireguard-go"])
def test_a_peer_that_changes_its_address_is_followed(other: str) -> None:
    """M44: from IPv4 to another IPv4 and on to IPv6, without a new handshake."""
    with pair_of_hosts() as lab:
        a, b = two(lab, other)
        before = b.handshakes()
        a.host.ip("address", "del", "10.66.0.1/24", "dev", "v0")
        a.host.address("v0", "10.66.0.9/24")
        a.reach(b)
        assert b.show("endpoints")[a.public] == "10.66.0.9:51820"
        b.ping(a.inner4)
        assert b.handshakes() == before
        if other == "wireguard-go":
            # After IPv4 traffic it sends IPv6 to a truncated address; it would not answer.
            return
        a.wg("set", a.name, "peer", b.public, "endpoint", "[fd66::2]:51820")
        a.ping(b.inner4)
        assert b.show("endpoints")[a.public] == "[fd66::1]:51820"
        b.ping(a.inner4)
        assert b.handshakes() == before


def test_nat_that_changes_its_port_is_followed() -> None:
    """B42, L6: masquerading, then the mapping is forgotten and made anew on another port."""
    with hosts_behind_router() as lab:
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", lab.hosts[1], 2)
        router = lab.hosts[2]

        def masquerade(ports: str) -> None:
            chain = f"""chain post {{
                type nat hook postrouting priority 100
                oifname "r2" ip protocol udp masquerade to :{ports}
            }}"""
            rules = f"table ip nat\ndelete table ip nat\ntable ip nat {{\n{chain}\n}}\n"
            run(["ip", "netns", "exec", router.name, "nft", "-f", "-"], stdin=rules)
            run(["ip", "netns", "exec", router.name, "conntrack", "-F"], check=False)

        masquerade("4000-4099")
        a.know(b, "10.66.2.2:51820", extra=("persistent-keepalive", "1"))
        b.know(a)
        a.reach(b)
        assert re.fullmatch(r"10\.66\.2\.1:40\d\d", b.show("endpoints")[a.public])
        before = b.handshakes()
        masquerade("5000-5099")
        until(lambda: re.fullmatch(r"10\.66\.2\.1:50\d\d", b.show("endpoints")[a.public]), "b follows the new port")
        b.ping(a.inner4)
        assert b.handshakes() == before


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_a_narrow_path_passes_bulk_tcp(v6: bool) -> None:
    """B78: MTU 1300 in the middle; wireguard-go never gets bulk TCP through."""
    with hosts_behind_router() as lab:
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", lab.hosts[1], 2)
        for host, device in ((lab.hosts[2], "r2"), (lab.hosts[1], "v0")):
            host.ip("link", "set", device, "mtu", "1300")
        a.know(b, "[fd66:2::2]:51820" if v6 else "10.66.2.2:51820")
        b.know(a, "[fd66:1::2]:51820" if v6 else "10.66.1.2:51820")
        a.reach(b)
        with b.iperf_server():
            for direction in ((), ("-R",)):
                assert a.iperf(b, *direction, seconds=2)["sum_received"]["bytes"] > 2e6


@pytest.mark.parametrize("mtu", [1280, 1420, 9000])
def test_the_mtu_can_change_while_the_tunnel_runs(mtu: int) -> None:
    """M22: also above the path's, where the outer packets are fragmented."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        for node in (a, b):
            node.host.ip("link", "set", node.name, "mtu", str(mtu))
        a.exec("ping", "-n", "-q", "-c", "3", "-i", "0.2", "-s", str(mtu - 28), "-M", "do", "-W", "5", b.inner4)
        with b.iperf_server():
            assert a.iperf(b)["sum_received"]["bytes"] > 5e6


def test_replies_leave_from_the_address_they_were_asked_at() -> None:
    """Sticky sources survive UDP_GRO; in wireguard-go they do not, for IPv4 and IPv6."""
    with pair_of_hosts() as lab:
        b_host = lab.hosts[1]
        b_host.address("v0", "10.66.0.77/24", "fd66::77/64")
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", b_host, 2)
        b.know(a)
        for outer, shown in (("10.66.0.77", "10.66.0.77"), ("[fd66::77]", "[fd66::77]")):
            a.know(b, f"{outer}:51820")
            a.reach(b)
            b.ping(a.inner4)
            assert a.show("endpoints")[b.public] == f"{shown}:51820"


def test_a_removed_source_address_is_dropped_and_the_tunnel_goes_on() -> None:
    with pair_of_hosts() as lab:
        b_host = lab.hosts[1]
        b_host.address("v0", "10.66.0.77/24")
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", b_host, 2)
        b.know(a)
        a.know(b, "10.66.0.77:51820")
        a.reach(b)
        b_host.ip("address", "del", "10.66.0.77/24", "dev", "v0")
        b.ping(a.inner4)
        assert a.show("endpoints")[b.public] == "10.66.0.2:51820"


@pytest.mark.parametrize("missing", ["ipv4", "ipv6"])
def test_a_host_with_one_family_works_and_shows_its_port(missing: str) -> None:
    """B76: wireguard-go shows port 0 without IPv6."""
    with pair_of_hosts() as lab:
        if missing == "ipv6":
            for host in lab.hosts:
                host.sysctl("net.ipv6.conf.v0.disable_ipv6", "1")
        else:
            for number, host in enumerate(lab.hosts, start=1):
                host.ip("address", "del", f"10.66.0.{number}/24", "dev", "v0")
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", lab.hosts[1], 2)
        connect(a, b, v6=missing == "ipv4")
        a.reach(b)
        assert a.wg("show", a.name, "listen-port").strip() == "51820"


def test_mixed_families_do_not_disturb_each_other() -> None:
    """After IPv4 traffic, wireguard-go sends IPv6 to a truncated address."""
    with laboratory(3) as lab:
        hub, *spokes = lab.hosts
        for number, spoke in enumerate(spokes, start=1):
            hub.join(spoke, f"v{number}", "v0")
            hub.address(f"v{number}", f"10.66.{number}.1/24", f"fd66:{number}::1/64")
            spoke.address("v0", f"10.66.{number}.2/24", f"fd66:{number}::2/64")
        center = lab.node("wyrmhole", hub, 1)
        four, six = lab.node("wyrmhole", spokes[0], 2), lab.node("wyrmhole", spokes[1], 3)
        four.know(center, "10.66.1.1:51820")
        six.know(center, "[fd66:2::1]:51820")
        center.know(four, "10.66.1.2:51820")
        center.know(six, "[fd66:2::2]:51820")
        for _ in range(3):
            for node in (four, six):
                center.ping(node.inner4)
                node.ping(center.inner6)


def test_a_route_loop_does_not_run_away() -> None:
    """B37: the endpoint is routed into the tunnel; less than 70,000 bytes of tunnel traffic in a second."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        a.wg("set", a.name, "peer", b.public, "allowed-ips", "0.0.0.0/0")
        a.host.ip("route", "add", "10.66.0.2/32", "dev", a.name)
        before = int(a.show("transfer")[b.public].split("\t")[1])
        a.ping(b.inner4, check=False)
        sent = int(a.show("transfer")[b.public].split("\t")[1]) - before
        assert sent < 70_000


def test_no_route_and_no_endpoint_are_told_to_the_sender() -> None:
    """M46: ping says so at once instead of silence."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        assert "Unreachable" in a.exec("ping", "-n", "-c", "1", "-W", "2", "10.77.0.200", check=False)
        b.know(a)
        a.wg("set", a.name, "peer", b.public, "remove")
        a.know(b)
        assert "Unreachable" in a.exec("ping", "-n", "-c", "1", "-W", "2", b.inner4, check=False)
        assert "unreachable" in a.exec("ping", "-n", "-c", "1", "-W", "2", "fd77::99", check=False).lower()


def test_handshakes_are_marked_and_ecn_is_copied_on_the_wire() -> None:
    """M48: AF41 on types 1 and 2; the inner ECN bits, and nothing else of TOS, on data."""
    with pair_of_hosts() as lab:
        a, b = lab.node("wyrmhole", lab.hosts[0], 1), lab.node("wyrmhole", lab.hosts[1], 2)
        with b.host.entered():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        with tap:
            tap.settimeout(10)
            connect(a, b)
            a.exec("ping", "-n", "-q", "-c", "1", "-Q", "0xba", b.inner4)
            seen: dict[int, set[int]] = {}
            while 4 not in seen:
                packet, (_, _, kind, *_) = tap.recvfrom(65535)
                if kind == socket.PACKET_HOST and packet[9] == 17:
                    seen.setdefault(packet[28], set()).add(packet[1])
        assert seen == {1: {0x88}, 4: {0x02}} or seen == {2: {0x88}, 4: {0x02}, 1: {0x88}}


def test_garbage_is_answered_by_silence() -> None:
    """M50, B1, B2, B3, B6: datagrams of every length; nothing comes back, and the tunnel still works."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        with a.host.entered():
            rude = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with rude:
            rude.connect(("10.66.0.2", 51820))
            for size in [*range(200), 1500, 9000, 65507]:
                for kind in range(6):
                    rude.send((bytes((kind, 0, 0, 0)) + os.urandom(size))[:size])
            a.ping(b.inner4)
            rude.setblocking(False)
            with pytest.raises(BlockingIOError):
                rude.recv(65535)


# Renewal and change


def test_renewals_under_load_lose_nothing() -> None:
    """L4, M36: Rekey-After-Time shortened to 2 s on our side, UDP at a steady rate, TCP in between."""
    with pair_of_hosts() as lab:
        a, b = lab.node("wyrmhole-short", lab.hosts[0], 1), lab.node("wireguard-go", lab.hosts[1], 2)
        connect(a, b)
        a.reach(b)
        first = a.handshakes()
        with b.iperf_server():
            udp = a.iperf(b, "-u", "-b", "20M", "-l", "1200", seconds=8)["sum"]
            assert udp["lost_packets"] == 0
            assert a.iperf(b, "-R", seconds=4)["sum_received"]["bytes"] > 5e6
        assert a.handshakes() - first >= 8


def test_the_listen_port_changes_without_losing_the_session() -> None:
    with pair_of_hosts() as lab:
        a, b = two(lab)
        before = a.handshakes()
        a.wg("set", a.name, "listen-port", "40404")
        a.ping(b.inner4)
        b.ping(a.inner4)
        assert b.show("endpoints")[a.public] == "10.66.0.1:40404"
        assert a.handshakes() == before


def test_the_fwmark_is_on_every_outer_packet() -> None:
    """Policy routing by the mark decides whether anything arrives."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        a.host.ip("rule", "add", "fwmark", "0x77", "prohibit")
        a.ping(b.inner4)
        a.wg("set", a.name, "fwmark", "0x77")
        assert a.wg("show", a.name, "fwmark").strip() == "0x77"
        assert not a.ping(b.inner4, check=False)
        a.wg("set", a.name, "fwmark", "0")
        a.reach(b)


def test_peers_of_several_hosts_reach_each_other_through_the_middle() -> None:
    with laboratory(4) as lab:
        hub, *spokes = lab.hosts
        center = None
        nodes = []
        for number, spoke in enumerate(spokes, start=1):
            hub.join(spoke, f"v{number}", "v0")
            hub.address(f"v{number}", f"10.66.{number}.1/24")
            spoke.address("v0", f"10.66.{number}.2/24")
        center = lab.node("wyrmhole", hub, 1)
        hub.sysctl("net.ipv4.ip_forward", "1")
        for number, (spoke, kind) in enumerate(
            zip(spokes, ("wyrmhole", "wireguard-go", "boringtun"), strict=True), start=1
        ):
            node = lab.node(kind, spoke, number + 1)
            node.wg(
                "set",
                node.name,
                "peer",
                center.public,
                "allowed-ips",
                "10.77.0.0/24",
                "endpoint",
                f"10.66.{number}.1:51820",
            )
            center.know(node)
            node.ping(center.inner4)
            nodes.append(node)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.ping(other.inner4)


def test_a_hundred_thousand_allowed_ips_in_one_set() -> None:
    """The last of them works, and all of them are shown."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        prefixes = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/32" for n in range(1 << 17, (1 << 17) + 99_998)]
        lines = [
            "[Peer]",
            f"PublicKey = {b.public}",
            "Endpoint = 10.66.0.2:51820",
            f"AllowedIPs = {b.inner4}/32,{b.inner6}/128",
        ]
        lines += ["AllowedIPs = " + ",".join(prefixes[start : start + 500]) for start in range(0, len(prefixes), 500)]
        a.wg("addconf", a.name, "/dev/stdin", stdin="\n".join(lines) + "\n")
        assert len(a.wg("show", a.name, "allowed-ips").split()) == 100_000 + 1
        a.ping(b.inner4)


def test_changing_other_peers_does_not_disturb_traffic() -> None:
    with pair_of_hosts() as lab:
        a, b = two(lab)
        pinging = subprocess.Popen(
            a.command("ping", "-n", "-q", "-c", "100", "-i", "0.02", "-W", "2", b.inner4),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for number in range(20):
            public = run(["wg", "pubkey"], stdin=run(["wg", "genkey"])).strip()
            a.wg("set", a.name, "peer", public, "allowed-ips", f"10.88.{number}.0/24")
            a.wg("set", a.name, "peer", public, "remove")
        out, _ = pinging.communicate(timeout=30)
        assert " 0% packet loss" in out


# The interface's life


def test_down_and_up_again_any_number_of_times() -> None:
    """B47."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        for _ in range(10):
            a.host.ip("link", "set", a.name, "down")
            a.host.ip("link", "set", a.name, "up")
        a.host.address(a.name, "fd77::1/64")
        a.reach(b)
        assert a.process is not None
        assert a.process.poll() is None


def test_deleting_the_interface_ends_the_daemon() -> None:
    """B48: its socket file is gone, its exit status 0."""
    with pair_of_hosts() as lab:
        a, _ = two(lab)
        assert a.process is not None
        a.host.ip("link", "del", a.name)
        assert a.process.wait(10) == 0
        assert not a.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_under_load(number: signal.Signals) -> None:
    with pair_of_hosts() as lab:
        a, b = two(lab)
        assert a.process is not None
        flood = subprocess.Popen(a.command("ping", "-n", "-q", "-f", "-w", "20", b.inner4), stdout=subprocess.DEVNULL)
        try:
            until(lambda: int(a.show("transfer")[b.public].split("\t")[1]) > 100_000, "traffic flows")
            a.process.send_signal(number)
            assert a.process.wait(10) == 0
        finally:
            flood.kill()
            flood.wait()
        assert not a.socket.exists()


def test_an_interface_moved_to_another_namespace_keeps_working() -> None:
    """The outer socket stays where the daemon is; up, down and MTU are followed from there."""
    with pair_of_hosts() as lab:
        a, b = two(lab)
        inner = Namespace()
        try:
            a.host.ip("link", "set", a.name, "netns", inner.name)
            inner.address(a.name, "10.77.0.1/24")
            inner.ip("link", "set", a.name, "mtu", "1380", "up")
            ping = [
                "ip",
                "netns",
                "exec",
                inner.name,
                "ping",
                "-n",
                "-q",
                "-c",
                "1",
                "-W",
                "2",
                "-s",
                "1352",
                "-M",
                "do",
                b.inner4,
            ]
            until(lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0, "it works there")
            inner.ip("link", "set", a.name, "down")
            inner.ip("link", "set", a.name, "up")
            until(
                lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0, "and after down and up"
            )
            until(lambda: "1380" in inner.ip("link", "show", a.name), "the MTU is the one set there")
        finally:
            inner.delete()


def test_wg_quick_up_and_down(tmp_path: Path) -> None:
    """wg-quick starts the daemon, configures, and takes everything down again."""
    with pair_of_hosts() as lab:
        b = lab.node("wireguard-go", lab.hosts[1], 2)
        name = f"whq{os.getpid() % 100_000}"
        private = run(["wg", "genkey"]).strip()
        public = run(["wg", "pubkey"], stdin=private).strip()
        b.wg("set", b.name, "peer", public, "allowed-ips", "10.77.0.1/32")
        config = tmp_path / f"{name}.conf"
        config.touch(0o600)
        config.write_text(
            f"[Interface]\nPrivateKey = {private}\nAddress = 10.77.0.1/24\nListenPort = 51820\nMTU = 1400\n"
            f"[Peer]\nPublicKey = {b.public}\nAllowedIPs = 10.77.0.2/32, 10.99.0.0/16\nEndpoint = 10.66.0.2:51820\n"
            "PersistentKeepalive = 25\n"
        )
        environment = {
            **os.environ,
            "WG_QUICK_USERSPACE_IMPLEMENTATION": str(BIN / "wyrmholed"),
            "WG_HIDE_KEYS": "always",
        }
        quick = ["ip", "netns", "exec", lab.hosts[0].name, "wg-quick"]
        subprocess.run([*quick, "up", str(config)], check=True, capture_output=True, env=environment, timeout=30)
        try:
            shown = run(["ip", "netns", "exec", lab.hosts[0].name, "wg", "show", name])
            assert "persistent keepalive: every 25 seconds" in shown
            assert "10.99.0.0/16 dev" in lab.hosts[0].ip("route")
            run(["ip", "netns", "exec", lab.hosts[0].name, "ping", "-n", "-q", "-c", "1", "-W", "5", b.inner4])
        finally:
            subprocess.run([*quick, "down", str(config)], check=True, capture_output=True, env=environment, timeout=30)
        until(lambda: not Path(f"/var/run/wireguard/{name}.sock").exists(), "the daemon is gone")
        assert name not in lab.hosts[0].ip("link")


def test_ready_in_the_background_when_the_command_returns() -> None:
    """The interface and its socket exist when `wyrmholed NAME` returns; bench/startup.py measures how long it takes."""
    with laboratory(1) as lab:
        host = lab.hosts[0]
        name = f"whr{os.getpid() % 100_000}"
        run(["ip", "netns", "exec", host.name, str(BIN / "wyrmholed"), name])
        assert Path(f"/var/run/wireguard/{name}.sock").is_socket()
        assert name in run(["ip", "netns", "exec", host.name, "wg", "show", "interfaces"]).split()
        host.ip("link", "del", name)
        until(lambda: not Path(f"/var/run/wireguard/{name}.sock").exists(), "the daemon is gone")
