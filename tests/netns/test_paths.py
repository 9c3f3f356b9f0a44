"""What the path does to a packet: small MTUs, missing families, ECN, what a sender is told when there is no way."""

from __future__ import annotations

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import Key, Node, peer_section
from tests.netns.traffic import Capture, transfer

pytestmark = pytest.mark.network

SERVER = {"v4": "198.51.100.2:51821", "v6": "[2001:db8:2::2]:51821"}
NEIGHBOUR = {"v4": "192.0.2.2:51821", "v6": "[2001:db8::2]:51821"}
FAMILIES = ("v4", "v6")


# MTU


@pytest.mark.parametrize("mtu", [1280, 1300])
@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_passes_a_path_smaller_than_the_tunnel_believes(lab: Lab, family: str, mtu: int) -> None:
    """The tunnel's MTU is 1420; a wire behind the first router has less. Handshakes and pings pass, bulk must too."""
    client, _, server = lab.routed(mtu)
    _, two = lab.tunnel(client, SUBJECT, server, SUBJECT, endpoint=SERVER[family])
    for address in two.addresses:
        client.ping(address)
        # An IPv6 router drops what is too big, once for each direction, and tells the sender.
        until(lambda: client.count_pings(address, 1, size=1372, wait=1), "large packets pass")  # noqa: B023
        client.ping(address, size=1372)
        transfer(client, server, address)


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_goes_on_when_the_path_shrinks_and_grows(lab: Lab, family: str) -> None:
    client, router, server = lab.routed()
    _, two = lab.tunnel(client, SUBJECT, server, SUBJECT, endpoint=SERVER[family])
    for mtu in (1500, 1300, 1500):
        for host, link in ((router, "eth1"), (server, "eth0")):
            host.ip("link", "set", link, "mtu", str(mtu))
        transfer(client, server, two.addresses[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_passes_when_the_own_uplink_is_too_small(lab: Lab, family: str) -> None:
    """EMSGSIZE on the first hop, also for a train of segments."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR[family])
    a.ping(two.addresses[0])
    for host in (a, b):
        host.ip("link", "set", "eth0", "mtu", "1300")
    a.ping(two.addresses[0], size=1372)
    transfer(a, b, two.addresses[0])


def test_the_mtu_of_the_interface_may_change_under_a_session(lab: Lab) -> None:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR["v4"])
    for mtu in (1420, 1280, 1400, 68, 1420):
        for node in (one, two):
            node.host.ip("link", "set", node.name, "mtu", str(mtu))
        a.ping(two.addresses[0], size=mtu - 28, fragment=False)
        assert a.count_pings(two.addresses[0], 1, size=mtu - 27, fragment=False, wait=1) == 0
    transfer(a, b, two.addresses[0])


def test_jumbo_frames_pass(lab: Lab) -> None:
    a, b = lab.neighbours()
    for host in (a, b):
        host.ip("link", "set", "eth0", "mtu", "9000")
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR["v4"], mtu=8920)
    a.ping(two.addresses[0], size=8892, fragment=False)
    transfer(a, b, two.addresses[0])


def test_ciphertext_is_padded_to_sixteen_and_never_above_the_mtu(lab: Lab) -> None:
    """On the wire, padding fills up to 16 bytes but not beyond the MTU (M22)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR["v4"], mtu=1419)
    with Capture(b, "eth0") as wire:
        for size in range(17):
            a.ping(two.addresses[0], count=1, size=size)
        a.ping(two.addresses[0], count=1, size=1419 - 28)
        lengths = {len(datagram.payload) - 32 for datagram in wire.of(4)}
    assert max(lengths) == 1419
    assert {length % 16 for length in lengths - {1419}} == {0}


# Families


@pytest.mark.parametrize("families", [("v4", "v6"), ("v6", "v4")], ids=["v4-only", "v6-only"])
def test_a_host_with_one_family_is_enough(lab: Lab, families: tuple[str, str]) -> None:
    has, lacks = families
    a, b = lab.neighbours()
    for host in (a, b):
        if lacks == "v6":
            host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        else:
            host.ip("address", "flush", "dev", "eth0", "scope", "global", "to", "192.0.2.0/24")
    one, two = (lab.node(host, SUBJECT, port=port) for host, port in ((a, 51820), (b, 51821)))
    inside = {"v4": ("10.77.0.1", "10.77.0.2"), "v6": ("fd77::1", "fd77::2")}[has]
    one.configure(peer_section(two.key.public, inside[1], endpoint=NEIGHBOUR[has]))
    two.configure(peer_section(one.key.public, inside[0]))
    for node, address in ((two, inside[1]), (one, inside[0])):
        node.assign(address + ("/64" if has == "v6" else "/24"))
        node.up()
    a.ping(inside[1])
    transfer(a, b, inside[1])
    one.set("listen-port", "50000")
    a.ping(inside[1])
    b.ping(inside[0])
    assert one.show("listen-port") == "50000"


# Marks on the outside


@pytest.mark.parametrize("family", FAMILIES)
def test_congestion_marks_pass_the_tunnel_and_dscp_does_not(lab: Lab, family: str) -> None:
    """ECN is carried as RFC 6040 says, DSCP is not (M48)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR[family])
    with Capture(b, "eth0") as wire:
        a.ping(two.addresses[0])
        assert {datagram.tos for kind in (1, 2) for datagram in wire.of(kind)} == {0x88}
    for inner, outer in ((0x00, 0), (0x01, 1), (0x02, 2), (0x03, 3), (0xB8, 0), (0xBA, 2)):
        with Capture(b, "eth0") as wire:
            a.run("ping", "-q", "-n", "-c", "1", "-W", "5", "-Q", str(inner), two.addresses[0])
            assert {datagram.tos for datagram in wire.of(4)} == {outer}


# No way


def ping_reply(host: Host, address: str) -> str:
    return host.try_run("ping", "-n", "-c", "1", "-W", "2", address).stdout


@pytest.fixture
def lonely(lab: Lab) -> Node:
    """A node with a peer at 10.77.0.2 (fd77::2) whose endpoint is not known, and nobody at .3."""
    host, _ = lab.neighbours()
    node = lab.node(host, SUBJECT)
    node.configure(peer_section(Key.generate().public, "10.77.0.2/32", "fd77::2/128"))
    node.assign("10.77.0.1/24", "fd77::1/64")
    node.up()
    return node


@pytest.mark.parametrize("address", ["10.77.0.2", "10.77.0.3"])
def test_a_sender_is_told_that_a_host_cannot_be_reached(lonely: Node, address: str) -> None:
    """A packet that no peer owns is answered with an ICMP error (M46)."""
    assert "Destination Host Unreachable" in ping_reply(lonely.host, address)


@pytest.mark.parametrize("address", ["fd77::2", "fd77::3"])
def test_a_sender_is_told_that_a_v6_host_cannot_be_reached(lonely: Node, address: str) -> None:
    """A packet that no peer owns is answered with an ICMPv6 error (M46)."""
    assert "Destination unreachable: Address unreachable" in ping_reply(lonely.host, address)
