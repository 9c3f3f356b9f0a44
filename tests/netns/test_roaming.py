"""Changes of addresses, ports and NATs during a session (M44), and the source address of replies."""

from __future__ import annotations

import socket

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import PEERS, SUBJECT
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, Node, peer_section
from tests.netns.traffic import Capture, transfer

pytestmark = pytest.mark.network

FAMILIES = ("v4", "v6")
ENDPOINT = {"v4": "192.0.2.2:51821", "v6": "[2001:db8::2]:51821"}
FORMER = {"v4": "192.0.2.1/24", "v6": "2001:db8::1/64"}
LATTER = {"v4": "192.0.2.9/24", "v6": "2001:db8::9/64"}
STRANGER = Key.generate().public
ROAMED = {"v4": "192.0.2.9:51820", "v6": "[2001:db8::9]:51820"}


def joined(lab: Lab, family: str = "v4", peer: str = SUBJECT) -> tuple[Host, Node, Host, Node]:
    """Return neighbours with a session that the first one initiated."""
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, peer, endpoint=ENDPOINT[family])
    a.ping(two.addresses[0])
    return a, one, b, two


def endpoint_of(node: Node, other: Node) -> str:
    return node.show_of(other.key.public, "endpoints")[0]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_address_is_followed_without_a_handshake(lab: Lab, family: str, peer: str) -> None:
    """Authenticated data moves the endpoint, here under traffic (M44)."""
    a, one, b, two = joined(lab, family, peer)
    with Capture(b, "eth0") as wire, a.pinging(two.addresses[0]):
        a.readdress("eth0", FORMER[family], LATTER[family])
        until(lambda: endpoint_of(two, one) == ROAMED[family], "the endpoint follows")
        b.ping(one.addresses[0])
        a.ping(two.addresses[1])
        assert not wire.of(1), "a handshake was needed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_responder_that_moves_is_followed_when_it_sends(lab: Lab, family: str) -> None:
    """Authenticated data moves the endpoint in both roles (M44)."""
    a, one, b, two = joined(lab, family)
    b.readdress("eth0", FORMER[family].replace("1/", "2/"), LATTER[family])
    b.ping(one.addresses[0])
    assert endpoint_of(one, two) == ROAMED[family].replace("51820", "51821")
    a.ping(two.addresses[0])


def test_a_session_moves_between_address_families(lab: Lab) -> None:
    a, one, b, two = joined(lab)
    for family, seen in (("v6", "[2001:db8::1]:51820"), ("v4", "192.0.2.1:51820"), ("v6", "[2001:db8::1]:51820")):
        one.set("peer", two.key.public, "endpoint", ENDPOINT[family])
        a.ping(two.addresses[0])
        assert endpoint_of(two, one) == seen
        b.ping(one.addresses[0])
        transfer(a, b, two.addresses[0])


def test_a_forged_packet_does_not_move_the_endpoint(lab: Lab) -> None:
    """It has a valid index, a wrong tag, another source address and a very high counter (M44, M23)."""
    a, one, b, two = joined(lab)
    with Capture(b, "eth0") as wire:
        a.ping(two.addresses[0])
        genuine = next(datagram.payload for datagram in wire.of(4) if not datagram.outgoing)
    forged = genuine[:8] + (10**6).to_bytes(8, "little") + bytes(len(genuine) - 16)
    a.address("eth0", "192.0.2.66/24")
    with Capture(b, "eth0") as wire:
        a.send_udp("192.0.2.66", ("192.0.2.2", 51821), forged, forged[:-1], forged[:31], genuine)
        b.ping(one.addresses[0])
        assert {datagram.destination for datagram in wire.datagrams if datagram.outgoing} == {"192.0.2.1"}
    assert endpoint_of(two, one) == "192.0.2.1:51820"
    a.ping(two.addresses[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_mark_selects_another_uplink(lab: Lab, family: str) -> None:
    """The source address of earlier answers belongs to the former mark's route. The kernel forgets it too."""
    a, one, b, two = joined(lab, family)
    lab.wire(a, b, ("203.0.113.1/24", "2001:db8:9::1/64"), ("203.0.113.2/24", "2001:db8:9::2/64"))
    flag, target, via, source = {
        "v4": ("-4", "192.0.2.2", "203.0.113.2", "203.0.113.1"),
        "v6": ("-6", "2001:db8::2", "2001:db8:9::2", "2001:db8:9::1"),
    }[family]
    a.ip(flag, "route", "add", target, "via", via, "dev", "eth1", "table", "77")
    a.ip(flag, "rule", "add", "fwmark", "77", "lookup", "77", "priority", "10")
    a.ping(two.addresses[0])
    with Capture(b, "eth1") as wire:
        one.set("fwmark", "77")
        a.ping(two.addresses[0])
        assert {datagram.source for datagram in wire.datagrams if not datagram.outgoing} == {source}
    with Capture(b, "eth0") as wire:
        one.set("fwmark", "0")
        a.ping(two.addresses[0])
        assert [datagram for datagram in wire.datagrams if not datagram.outgoing]
        assert endpoint_of(two, one) == f"{FORMER['v4'][:-3]}:51820" if family == "v4" else "[2001:db8::1]:51820"


def test_the_daemon_s_ipv6_datagrams_have_no_flow_label(lab: Lab) -> None:
    """Its sockets are created after it has dropped its privileges."""
    a, b = lab.neighbours()
    with b.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
    with tap:
        tap.bind(("eth0", 0x86DD))
        tap.settimeout(10)
        _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT["v6"])
        a.ping(two.addresses[0])
        seen: set[int] = set()
        while len(seen) < 2:
            packet = tap.recv(0x10000)
            if packet[6] == socket.IPPROTO_UDP:
                assert int.from_bytes(packet[:4], "big") & 0xFFFFF == 0
                seen.add(packet[48])
        assert seen <= {1, 2, 4}


# NAT


def masquerade(ports: str) -> str:
    return f"""
        flush ruleset
        table ip nat {{
            chain out {{
                type nat hook postrouting priority srcnat
                oifname "eth1" meta l4proto udp masquerade to :{ports}
            }}
        }}
    """


@pytest.mark.parametrize("peer", PEERS)
def test_the_next_packet_restores_a_lost_nat_mapping(lab: Lab, peer: str) -> None:
    client, router, server = lab.routed()
    router.nft(masquerade("40000-40009"))
    one, two = lab.tunnel(client, SUBJECT, server, peer, endpoint="198.51.100.2:51821")
    client.ping(two.addresses[0])
    assert endpoint_of(two, one).startswith("198.51.100.1:4000")
    with Capture(server, "eth0") as wire:
        for ports in ("41000-41009", "42000-42009"):
            router.nft(masquerade(ports))
            router.run("conntrack", "-F")
            client.ping(two.addresses[0])
            assert endpoint_of(two, one).startswith(f"198.51.100.1:{ports[:4]}")
            server.ping(one.addresses[0])
        assert not wire.of(1), "a handshake was needed"


def test_persistent_keepalives_keep_a_nat_mapping_open(lab: Lab) -> None:
    """The mapping expires after 2 s, and the client sends no data, but the server can still reach it (M53, L6)."""
    client, router, server = lab.routed()
    router.nft(masquerade("40000-40009"))
    for name in ("net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream"):
        router.sysctl(name, "2")
    one, two = lab.tunnel(client, SUBJECT, server, SUBJECT, endpoint="198.51.100.2:51821", keepalive=1)
    until(lambda: two.latest_handshake(one.key.public), "the keepalive starts a session without traffic")
    with Capture(server, "eth0") as wire:
        until(lambda: len([it for it in wire.of(4) if not it.outgoing and len(it.payload) == 32]) >= 4, "keepalives")
    server.ping(one.addresses[0])


def test_a_persistent_keepalive_set_later_starts_at_once(lab: Lab) -> None:
    """It starts when it is configured, without waiting for traffic (M53)."""
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT["v4"])
    one.set("peer", two.key.public, "persistent-keepalive", "25")
    until(lambda: two.latest_handshake(one.key.public), "there is a session without traffic", patience=10)


# The source of replies


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_leave_from_the_address_that_was_contacted(lab: Lab, family: str) -> None:
    a, b = lab.neighbours()
    b.address("eth0", "192.0.2.3/24", "192.0.2.4/24", "2001:db8::3/64", "2001:db8::4/64")
    host = {"v4": "192.0.2.{}", "v6": "2001:db8::{}"}[family]
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=endpoint(host.format(3)))
    for number in (3, 4, 2):
        one.set("peer", two.key.public, "endpoint", endpoint(host.format(number)))
        with Capture(a, "eth0") as wire:
            a.ping(two.addresses[0], count=5)
            b.ping(one.addresses[0], count=5)
            sources = {datagram.source for datagram in wire.datagrams if not datagram.outgoing}
        assert sources == {host.format(number)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_source_address_is_replaced(lab: Lab, family: str) -> None:
    a, b = lab.neighbours()
    host = {"v4": "192.0.2.{}", "v6": "2001:db8::{}"}[family]
    bits = FORMER[family][-3:]
    b.address("eth0", host.format(3) + bits)
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=endpoint(host.format(3)))
    a.ping(two.addresses[0])
    b.ip("address", "del", host.format(3) + bits, "dev", "eth0")
    until(lambda: b.can_ping(one.addresses[0]), "the server uses another address")
    assert endpoint_of(one, two) == endpoint(host.format(2))
    a.ping(two.addresses[0])


def endpoint(host: str) -> str:
    return f"[{host}]:51821" if ":" in host else f"{host}:51821"


def test_a_change_of_uplink_changes_the_source(lab: Lab) -> None:
    """There are two links to the server; the route moves to the other one, and so does the source."""
    a, b = lab.neighbours()
    lab.wire(a, b, ("198.51.100.1/24",), ("198.51.100.2/24",))
    b.ip("address", "add", "203.0.113.1/32", "dev", "lo")
    a.ip("route", "add", "203.0.113.1", "via", "192.0.2.2")
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint="203.0.113.1:51821")
    a.ping(two.addresses[0])
    b.ping(one.addresses[0])
    assert endpoint_of(two, one) == "192.0.2.1:51820"
    a.ip("route", "replace", "203.0.113.1", "via", "198.51.100.2")
    until(lambda: a.can_ping(two.addresses[0]), "the other uplink carries")
    assert endpoint_of(two, one) == "198.51.100.1:51820"


# Ports and marks


def test_the_listen_port_may_change_during_a_session(lab: Lab) -> None:
    a, one, b, two = joined(lab)
    with Capture(a, "eth0") as wire:
        two.set("listen-port", "50001")
        b.ping(one.addresses[0])
        assert endpoint_of(one, two) == "192.0.2.2:50001"
        one.set("listen-port", "50002")
        a.ping(two.addresses[0])
        assert endpoint_of(two, one) == "192.0.2.1:50002"
        transfer(a, b, two.addresses[0])
        assert not wire.of(1), "a handshake was needed"


def test_datagrams_carry_the_mark_that_routes_require(lab: Lab) -> None:
    a, b = lab.neighbours()
    for family in ((), ("-6",)):
        a.ip(*family, "rule", "add", "fwmark", "0x1f", "lookup", "main", "priority", "10")
        a.ip(*family, "rule", "add", "fwmark", "0", "lookup", "77", "priority", "11")
    a.ip("route", "add", "unreachable", "192.0.2.0/24", "table", "77")
    a.ip("-6", "route", "add", "unreachable", "2001:db8::/64", "table", "77")
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT["v4"])
    assert not a.can_ping(two.addresses[0])
    one.set("fwmark", "0x1f")
    until(lambda: a.can_ping(two.addresses[0]), "marked packets pass")
    one.set("peer", two.key.public, "endpoint", ENDPOINT["v6"])
    a.ping(two.addresses[0])
    one.set("fwmark", "0")
    assert not a.can_ping(two.addresses[0])


def test_a_route_loop_through_the_own_tunnel_ends(lab: Lab) -> None:
    """The peer's endpoint is routed into the tunnel, which must not cause an endless loop of packets."""
    a, _ = lab.neighbours()
    node = lab.node(a, SUBJECT)
    node.configure(peer_section(STRANGER, "0.0.0.0/0", endpoint="198.51.100.9:1"))
    node.assign(inner(1, 24)[0])
    node.up()
    a.ip("route", "add", "198.51.100.9", "dev", node.name)
    before = a.packets_sent(node.name)
    a.count_pings("198.51.100.9", count=3, wait=1)
    assert a.packets_sent(node.name) - before < 100
