"""The daemon with the standard tools: wg, wg-quick and ip."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import COMMANDS, SUBJECT
from tests.netns.lab import Lab, inner
from tests.netns.node import SOCKETS, Key, Node, peer_section, unique_name
from tests.netns.traffic import Capture, transfer

pytestmark = pytest.mark.network

ENDPOINT = "192.0.2.2:51821"


def joined(lab: Lab) -> tuple[Host, Node, Host, Node]:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    return a, one, b, two


# wg-quick


class Quick:
    """wg-quick with the implementation under test, on one host, for one configuration file."""

    def __init__(self, host: Host, folder: Path, text: str) -> None:
        self.host = host
        self.name = unique_name()
        self.file = folder / f"{self.name}.conf"
        self.file.touch(0o600)
        self.file.write_text(text)

    def __call__(self, action: str) -> str:
        return self.host.run("wg-quick", action, str(self.file), environ={USERSPACE: COMMANDS[SUBJECT][0]})

    def is_gone(self) -> bool:
        there = self.host.try_run("ip", "link", "show", self.name).returncode == 0
        return not there and not (SOCKETS / f"{self.name}.sock").exists()


USERSPACE = "WG_QUICK_USERSPACE_IMPLEMENTATION"


def beside(lab: Lab, b: Host, key: Key) -> Node:
    node = lab.node(b, SUBJECT, port=51821)
    node.configure(peer_section(key.public, *inner(1)))
    node.assign(*inner(2, 24, 64))
    node.up()
    return node


def test_wg_quick_brings_a_tunnel_up_and_down(lab: Lab, tmp_path: Path) -> None:
    a, b = lab.neighbours()
    key = Key.generate()
    node = beside(lab, b, key)
    interface = f"[Interface]\nPrivateKey = {key.private}\nAddress = 10.77.0.1/24, fd77::1/64\nMTU = 1400\n"
    quick = Quick(a, tmp_path, interface + peer_section(node.key.public, *inner(2), endpoint=ENDPOINT))
    for _ in range(3):
        quick("up")
        assert (SOCKETS / f"{quick.name}.sock").is_socket(), "the kernel's own implementation was used"
        for address in node.addresses:
            a.ping(address)
        assert "mtu 1400" in a.ip("link", "show", quick.name)
        quick("down")
        until(quick.is_gone, "the daemon ended")


def test_wg_quick_routes_everything_through_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    """A mark, a rule and a separate routing table keep the tunnel's own datagrams out of the tunnel."""
    client, _, server = lab.routed()
    key = Key.generate()
    node = beside(lab, server, key)
    server.ip("address", "add", "203.0.113.7/32", "dev", "lo")
    interface = f"[Interface]\nPrivateKey = {key.private}\nAddress = 10.77.0.1/24, fd77::1/64\n"
    peer = peer_section(node.key.public, "0.0.0.0/0", "::/0", endpoint="198.51.100.2:51821")
    quick = Quick(client, tmp_path, interface + peer)
    quick("up")
    for address in (*node.addresses, "203.0.113.7"):
        client.ping(address)
    assert client.run("wg", "show", quick.name, "fwmark").strip() == "0xca6c"
    quick("down")
    until(quick.is_gone, "the daemon ended")
    client.ping("198.51.100.2")


def test_wg_quick_saves_changes(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    quick = Quick(a, tmp_path, f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24\n")
    quick("up")
    extra = Key.generate().public
    a.run("wg", "set", quick.name, "peer", extra, "allowed-ips", "10.77.5.0/24", "persistent-keepalive", "7")
    quick("save")
    quick("down")
    saved = quick.file.read_text()
    assert extra in saved and "AllowedIPs = 10.77.5.0/24" in saved and "PersistentKeepalive = 7" in saved


# wg


def test_wg_show_lists_the_session(lab: Lab) -> None:
    _, one, _, two = joined(lab)
    shown = one.wg("show", one.name)
    for line in (
        "endpoint: 192.0.2.2:51821",
        "latest handshake:",
        "transfer:",
        "allowed ips: 10.77.0.2/32, fd77::2/128",
    ):
        assert line in shown
    assert one.key.private not in shown
    assert one.show("public-key") == one.key.public and two.show("listen-port") == "51821"


def test_setting_the_same_configuration_keeps_the_session(lab: Lab, tmp_path: Path) -> None:
    """After syncconf of the same configuration and addconf of another peer, there is no handshake."""
    a, one, b, two = joined(lab)
    saved = tmp_path / "saved.conf"
    with Capture(b, "eth0") as wire, a.pinging(two.addresses[0]):
        for number in range(5):
            saved.write_text(one.wg("showconf", one.name))
            one.wg("syncconf", one.name, str(saved))
            saved.write_text(peer_section(Key.generate().public, f"10.78.{number}.0/24"))
            one.wg("addconf", one.name, str(saved))
        one.set("peer", two.key.public, "allowed-ips", "10.77.0.2/32,10.79.0.0/16")
        a.ping(two.addresses[0])
        b.ping(one.addresses[0])
        assert not wire.of(1)
    assert len(one.show("peers").split()) == 6


def test_a_removed_peer_is_cut_off_and_can_be_added_again(lab: Lab) -> None:
    a, one, _, two = joined(lab)
    one.set("peer", two.key.public, "remove")
    assert not a.can_ping(two.addresses[0])
    one.set("peer", two.key.public, "endpoint", ENDPOINT, "allowed-ips", "10.77.0.2/32")
    until(lambda: a.can_ping(two.addresses[0]), "the peer is back")


def test_a_new_private_key_replaces_all_sessions(lab: Lab) -> None:
    """The sessions end, and new handshakes use the new key (M52)."""
    a, one, _, two = joined(lab)
    key = Key.generate()
    two.set("peer", key.public, "allowed-ips", "10.77.0.1/32")
    one.set("private-key", "/dev/stdin", text=key.private)
    until(lambda: a.can_ping(two.addresses[0]), "a session under the other key")
    assert two.latest_handshake(key.public)


def test_our_own_key_is_not_a_peer(lab: Lab) -> None:
    """Our own public key is never a peer (M51)."""
    a, _ = lab.neighbours()
    node = lab.node(a, SUBJECT)
    node.configure()
    other = Key.generate()
    for key in (node.key, other):
        node.set("peer", key.public, "allowed-ips", "10.77.0.2/32")
    assert node.show("peers") == other.public
    node.set("private-key", "/dev/stdin", text=other.private)
    assert node.show("peers") == ""


def test_one_set_may_have_over_100000_allowed_ips(lab: Lab) -> None:
    """130,560 prefixes are set, listed, looked up and replaced."""
    a, one, b, two = joined(lab)
    networks = [f"10.{x}.{y}.{z}/32" for x, y, z in itertools.product(range(100, 102), range(255), range(256))]
    peer = peer_section(two.key.public, *inner(2), *networks, endpoint=ENDPOINT)
    one.wg("syncconf", one.name, "/dev/stdin", text=f"{interface_section(one)}{peer}")
    assert len(one.show_of(two.key.public, "allowed-ips")) == 130_562
    b.ip("address", "add", "10.101.254.255/32", "dev", two.name)
    a.ip("route", "add", "10.101.0.0/16", "dev", one.name)
    a.ping("10.101.254.255")
    one.set("peer", two.key.public, "allowed-ips", "10.77.0.2/32")
    assert one.show_of(two.key.public, "allowed-ips") == ["10.77.0.2/32"]
    assert not a.can_ping("10.101.254.255")


def interface_section(node: Node) -> str:
    return f"[Interface]\nPrivateKey = {node.key.private}\nListenPort = {node.port}\n"


# ip


def test_the_interface_can_go_up_and_down_repeatedly(lab: Lab) -> None:
    a, one, b, two = joined(lab)
    for _ in range(5):
        one.down()
        until(lambda: not a.run("ss", "-Huln", "sport = :51820"), "the socket is closed")
        one.up()
        a.ping(two.addresses[0])
    for _ in range(20):
        two.down()
        b.ip("link", "set", two.name, "up")
    until(lambda: b.can_ping(one.addresses[0]), "the last state applies")
    a.ping(two.addresses[0])


def test_a_deleted_interface_ends_the_daemon(lab: Lab) -> None:
    a, one, _, _ = joined(lab)
    a.ip("link", "del", one.name)
    assert one.process.wait(20) == 0
    assert not one.socket.exists()


def test_a_deleted_namespace_ends_the_daemon(lab: Lab) -> None:
    a, one, _, _ = joined(lab)
    elsewhere = lab.host()
    a.ip("link", "set", one.name, "netns", elsewhere.name)
    elsewhere.delete()
    assert one.process.wait(20) == 0


def test_an_interface_in_another_namespace_keeps_its_sockets(lab: Lab) -> None:
    """The new namespace has only the tunnel, and the original one only the ciphertext."""
    a, b = lab.neighbours()
    inside = lab.host()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    a.ip("link", "set", one.name, "netns", inside.name)
    inside.address(one.name, *inner(1, 24, 64))
    inside.ip("link", "set", one.name, "up")
    until(lambda: inside.can_ping(two.addresses[0]), "the tunnel carries from inside")
    transfer(inside, b, two.addresses[0])
    inside.ip("link", "set", one.name, "down")
    until(lambda: not a.run("ss", "-Huln", "sport = :51820"), "the daemon notices down from outside")
    inside.ip("link", "set", one.name, "mtu", "1300", "up")
    until(lambda: inside.can_ping(two.addresses[0]), "the tunnel carries again")
    b.ping(one.addresses[0])


def test_an_interface_may_be_renamed(lab: Lab) -> None:
    a, one, b, two = joined(lab)
    a.ip("link", "set", one.name, "name", "renamed0")
    a.ping(two.addresses[0])
    a.ip("link", "set", "renamed0", "down")
    until(lambda: not a.run("ss", "-Huln", "sport = :51820"), "the daemon notices down under the new name")
    a.ip("link", "set", "renamed0", "up")
    until(
        lambda: b.can_ping(one.addresses[0]) or a.can_ping(two.addresses[0]), "the daemon notices up under the new name"
    )


# Several peers


def test_three_peers_connect_and_cannot_use_each_other_s_address(lab: Lab) -> None:
    """B may not use C's address, although it is inside A's network (M45)."""
    hosts = lab.switched(3)
    nodes = [lab.node(host, SUBJECT) for host in hosts]
    for number, node in enumerate(nodes, 1):
        sections = [
            peer_section(other.key.public, *inner(at), endpoint=f"192.0.2.{at}:51820")
            for at, other in enumerate(nodes, 1)
            if at != number
        ]
        node.configure(*sections)
        node.assign(*inner(number, 24, 64))
        node.up()
    for one, other in itertools.permutations(range(3), 2):
        until(lambda: hosts[one].can_ping(nodes[other].addresses[0]), "a first session")  # noqa: B023
        hosts[one].ping(nodes[other].addresses[1])
        transfer(hosts[one], hosts[other], nodes[other].addresses[0])
    nodes[0].set("peer", nodes[1].key.public, "allowed-ips", "10.77.0.0/24")
    hosts[1].ip("address", "add", "10.77.0.3/32", "dev", nodes[1].name)
    borrowed = ("ping", "-q", "-n", "-c", "1", "-W", "1", "-I", "10.77.0.3", nodes[0].addresses[0])
    assert hosts[1].try_run(*borrowed).returncode == 1
    nodes[0].set("peer", nodes[2].key.public, "remove")
    assert hosts[1].try_run(*borrowed).returncode == 0


def test_spokes_communicate_through_a_hub(lab: Lab) -> None:
    hub_host, left_host, right_host = lab.switched(3)
    hub_host.forward()
    hub, left, right = (lab.node(host, SUBJECT) for host in (hub_host, left_host, right_host))
    hub.configure(*(peer_section(node.key.public, *inner(at)) for at, node in ((2, left), (3, right))))
    hub.assign(*inner(1, 24, 64))
    hub.up()
    for at, node in ((2, left), (3, right)):
        node.configure(
            peer_section(hub.key.public, "10.77.0.0/24", "fd77::/64", endpoint="192.0.2.1:51820", keepalive=5)
        )
        node.assign(*inner(at, 24, 64))
        node.up()
        until(lambda: hub.latest_handshake(node.key.public), "the spoke is connected")  # noqa: B023
    for address in right.addresses:
        left_host.ping(address)
        transfer(left_host, right_host, address)
