"""Properties of the path: small MTUs, missing address families, ECN, and ICMP errors for unreachable destinations."""

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
def test_bulk_passes_a_path_with_a_smaller_mtu(lab: Lab, family: str, mtu: int) -> None:
    """The tunnel's MTU is 1420; the MTU of a link after the first router is smaller. Pings and bulk must still pass."""
    client, _, server = lab.routed(mtu)
    _, two = lab.tunnel(client, SUBJECT, server, SUBJECT, endpoint=SERVER[family])
    for address in two.addresses:
        client.ping(address)
        # An IPv6 router drops the first packet that is too big in each direction, and informs the sender.
        until(lambda: client.count_pings(address, 1, size=1372, wait=1), "large packets pass")  # noqa: B023
        client.ping(address, size=1372)
        transfer(client, server, address)


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_continues_when_the_path_mtu_changes(lab: Lab, family: str) -> None:
    client, router, server = lab.routed()
    _, two = lab.tunnel(client, SUBJECT, server, SUBJECT, endpoint=SERVER[family])
    for mtu in (1500, 1300, 1500):
        for host, link in ((router, "eth1"), (server, "eth0")):
            host.ip("link", "set", link, "mtu", str(mtu))
        transfer(client, server, two.addresses[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_passes_a_first_hop_with_a_smaller_mtu(lab: Lab, family: str) -> None:
    """The first hop returns EMSGSIZE, even for a train of segments."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR[family])
    a.ping(two.addresses[0])
    for host in (a, b):
        host.ip("link", "set", "eth0", "mtu", "1300")
    a.ping(two.addresses[0], size=1372)
    transfer(a, b, two.addresses[0])


def test_the_interface_mtu_may_change_during_a_session(lab: Lab) -> None:
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


def test_ciphertext_is_padded_to_16_but_not_beyond_the_mtu(lab: Lab) -> None:
    """The test checks the sizes on the wire (M22)."""
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
def test_one_address_family_suffices(lab: Lab, families: tuple[str, str]) -> None:
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


# Outer TOS byte


@pytest.mark.parametrize("family", FAMILIES)
def test_congestion_marks_pass_the_tunnel_but_dscp_does_not(lab: Lab, family: str) -> None:
    """ECN is carried as specified by RFC 6040, and DSCP is not carried (M48)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=NEIGHBOUR[family])
    with Capture(b, "eth0") as wire:
        a.ping(two.addresses[0])
        assert {datagram.tos for kind in (1, 2) for datagram in wire.of(kind)} == {0x88}
    for inner, outer in ((0x00, 0), (0x01, 1), (0x02, 2), (0x03, 3), (0xB8, 0), (0xBA, 2)):
        with Capture(b, "eth0") as wire:
            a.run("ping", "-q", "-n", "-c", "1", "-W", "5", "-Q", str(inner), two.addresses[0])
            assert {datagram.tos for datagram in wire.of(4)} == {outer}


# Unreachable destinations


def ping_reply(host: Host, address: str) -> str:
    return host.try_run("ping", "-n", "-c", "1", "-W", "2", address).stdout


@pytest.fixture
def lonely(lab: Lab) -> Node:
    """A node with a peer of unknown endpoint at 10.77.0.2 (fd77::2), and no peer at .3."""
    host, _ = lab.neighbours()
    node = lab.node(host, SUBJECT)
    node.configure(peer_section(Key.generate().public, "10.77.0.2/32", "fd77::2/128"))
    node.assign("10.77.0.1/24", "fd77::1/64")
    node.up()
    return node


@pytest.mark.parametrize("address", ["10.77.0.2", "10.77.0.3"])
def test_an_unreachable_ipv4_destination_is_answered_by_icmp(lonely: Node, address: str) -> None:
    """This covers a destination without a peer, and a peer without an endpoint (M46)."""
    assert "Destination Host Unreachable" in ping_reply(lonely.host, address)


@pytest.mark.parametrize("address", ["fd77::2", "fd77::3"])
def test_an_unreachable_ipv6_destination_is_answered_by_icmp(lonely: Node, address: str) -> None:
    """This covers a destination without a peer, and a peer without an endpoint (M46)."""
    assert "Destination unreachable: Address unreachable" in ping_reply(lonely.host, address)
