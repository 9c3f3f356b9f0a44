"""Faults of the underlying network: links, routes, addresses, queues and filters."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from tests.chaos.relay import ReversingRelay
from tests.chaos.scene import Record, Scene, count, hold, implementation
from tests.chaos.stream import Stream
from tests.netns.host import Host, until
from tests.netns.lab import Lab
from tests.netns.node import peer_section
from tests.netns.traffic import Capture

pytestmark = pytest.mark.network


def routed(lab: Lab, engine: str) -> tuple[Scene, Host]:
    client, router, server = lab.routed()
    name = implementation(engine)
    one, two = lab.tunnel(client, name, server, name, endpoint="198.51.100.2:51821")
    client.ping(two.addresses[0], count=1)
    return Scene(client, server, one, two), router


def test_underlay_down(lab: Lab, engine: str, record: Record) -> None:
    """The link is down for longer than a peer waits for an answer (15 s, or 0.7 s with short timings)."""
    scene, seconds = Scene.set(lab, engine, timings="real" if count(1, 0) else "short"), count(30, 2)
    with scene.stream() as stream:
        scene.a.ip("link", "set", "eth0", "down")
        hold(seconds)
        up = time.monotonic()
        scene.a.ip("link", "set", "eth0", "up")
        recovery = stream.recovery(up)
    assert recovery < 1.5
    record(
        f"underlay down, {seconds} s",
        "packets are refused by the kernel and dropped; initiations continue",
        lost=f"{stream.lost_text}: those sent during the fault",
        recovery=[recovery],
    )


def test_route_flaps(lab: Lab, engine: str, record: Record) -> None:
    """The route to the peer is removed and restored; the session survives."""
    scene, _ = routed(lab, engine)
    times, recovery = count(100, 10), []
    with scene.stream() as stream, Capture(scene.b, "eth0") as wire:
        for _ in range(times):
            scene.a.ip("route", "del", "default")
            back = time.monotonic()
            scene.a.ip("route", "add", "default", "via", "192.0.2.1")
            recovery.append(stream.recovery(back))
        assert not wire.of(1), "a handshake was needed"
    assert max(recovery) < 0.5
    record(
        "route flaps",
        "sends fail because there is no route; the session stays, without a handshake",
        times=times,
        lost=stream.lost_text,
        recovery=recovery,
    )


def test_address_removed(lab: Lab, engine: str, record: Record) -> None:
    """The pinned source address is removed, and the host gets another one."""
    scene, times = Scene.set(lab, engine), count(20, 4)
    former, latter, recovery = "192.0.2.1/24", "192.0.2.7/24", []
    with scene.stream() as stream:
        for _ in range(times):
            changed = time.monotonic()
            scene.a.readdress("eth0", former, latter)
            recovery.append(stream.recovery(changed))
            former, latter = latter, former
    assert max(recovery) < 0.5
    record(
        "address removed",
        "the pinned source is refused and forgotten, and the packet is sent again from the new address; the peer roams",
        times=times,
        lost=stream.lost_text,
        recovery=recovery,
    )


@pytest.mark.parametrize(("has", "lacks"), [("v4", "v6"), ("v6", "v4")], ids=["v4-only", "v6-only"])
def test_one_family_only(lab: Lab, engine: str, record: Record, has: str, lacks: str) -> None:
    """The tunnel works between hosts with addresses of one family only."""
    a, b = lab.neighbours()
    for host in (a, b):
        if lacks == "v6":
            host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        else:
            host.ip("address", "flush", "dev", "eth0", "scope", "global", "to", "192.0.2.0/24")
    name = implementation(engine)
    one, two = lab.node(a, name), lab.node(b, name, port=51821)
    inside, bits = {"v4": ("10.77.0.{}", "/24"), "v6": ("fd77::{}", "/64")}[has]
    outside = {"v4": "192.0.2.{}:{}", "v6": "[2001:db8::{}]:{}"}[has]
    for number, node, other in ((1, one, two), (2, two, one)):
        remote = outside.format(3 - number, other.port)
        node.configure(peer_section(other.key.public, inside.format(3 - number), endpoint=remote))
        node.assign(inside.format(number) + bits)
    two.up()
    started = time.monotonic()
    one.up()
    with Stream(a, b, inside.format(2), interval=0.005, size=64) as stream:
        recovery = stream.recovery(started)
        stream.flow()
    assert stream.lost == 0
    record(
        f"{has}-only host",
        "one socket is enough (recovery: from interface up to the first echo)",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def qdisc(host: Host, *words: str) -> None:
    host.run("tc", "qdisc", "add", "dev", "eth0", "root", *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wire queue full (tbf, two packets)", ("tbf", "rate", "400kbit", "burst", "1600", "limit", "3200")),
        ("socket buffer full (a wire of 2 Mb/s)", ("tbf", "rate", "2mbit", "burst", "10kb", "limit", "100mb")),
    ],
    ids=["qdisc", "sndbuf"],
)
def test_no_buffers(lab: Lab, engine: str, record: Record, name: str, words: tuple[str, ...]) -> None:
    """The sender exceeds the kernel's buffers: packets are dropped, nothing stalls, and the tunnel recovers."""
    scene = Scene.set(lab, engine)
    with scene.stream() as stream:
        qdisc(scene.a, *words)
        flood(scene, count(50_000, 10_000))
        stream.flow_out(20)
        healed = time.monotonic()
        scene.a.run("tc", "qdisc", "del", "dev", "eth0", "root")
        recovery = stream.recovery(healed)
        stream.flow()
    assert recovery < 1.5
    record(
        name,
        "packets that find no room are dropped; nothing waits for them",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def flood(scene: Scene, datagrams: int) -> None:
    """Send into the tunnel as fast as possible; most datagrams exceed the buffers."""
    with scene.a.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((scene.two.addresses[0], 9))
        for _ in range(datagrams):
            with suppress(OSError):
                sender.send(bytes(1200))


def filtered(action: str) -> str:
    return f"""
        table inet chaos {{
            chain out {{ type filter hook output priority 0; udp dport 51821 {action}; }}
        }}
    """


def rejected() -> str:
    return """
        table inet chaos {
            chain in { type filter hook input priority 0; udp dport 51821 reject; }
        }
    """


@pytest.mark.parametrize(
    ("name", "happens", "at_peer", "rules"),
    [
        ("EPERM from a filter", "sendmsg fails, the packet is dropped and counted", False, filtered("drop")),
        ("ICMP errors", "port unreachable comes back for each packet and is ignored", True, rejected()),
    ],
    ids=["eperm", "icmp"],
)
def test_filtered(lab: Lab, engine: str, record: Record, name: str, happens: str, at_peer: bool, rules: str) -> None:
    scene, times, recovery = Scene.set(lab, engine), count(50, 5), []
    host = scene.b if at_peer else scene.a
    with scene.stream() as stream, Capture(scene.b, "eth0") as wire:
        for _ in range(times):
            host.nft(rules)
            stream.flow_out(20)
            healed = time.monotonic()
            host.nft("delete table inet chaos")
            recovery.append(stream.recovery(healed))
        assert not wire.of(1), "a handshake was needed"
    assert max(recovery) < 0.5
    record(name, happens, times=times, lost=f"{stream.lost_text}: those that were refused", recovery=recovery)


def test_size_black_hole(lab: Lab, engine: str, record: Record) -> None:
    """The path drops packets larger than 600 bytes silently."""
    scene, router = routed(lab, engine)
    hole = "table inet chaos { chain f { type filter hook forward priority 0; meta length > 600 drop; }; }"
    for host in (scene.a, scene.b):
        # The filter would see a train as one packet; a router after a real link sees datagrams.
        host.ip("link", "set", "eth0", "gso_max_segs", "1")
    with scene.stream(size=64) as small, scene.stream(size=1000) as large:
        router.nft(hole)
        arrived = len(large.back)
        small.flow(40)
        assert len(large.back) <= arrived + 2, "large packets still pass"
        scene.a.ip("link", "set", scene.one.name, "mtu", "540")
        scene.b.ip("link", "set", scene.two.name, "mtu", "540")
        lowered = large.recovery(time.monotonic())
        healed = time.monotonic()
        router.nft("delete table inet chaos")
        scene.a.ip("link", "set", scene.one.name, "mtu", "1420")
        scene.b.ip("link", "set", scene.two.name, "mtu", "1420")
        recovery = large.recovery(healed)
    assert small.lost == 0
    assert recovery < 0.5
    record(
        "MTU black hole",
        f"small packets and handshakes pass, large packets are lost; a smaller MTU of the interface fixes it"
        f" in {lowered:.3f} s",
        lost=f"small {small.lost_text}, large {large.lost_text}",
        recovery=[recovery],
    )


def masquerade(first_port: int) -> str:
    return f"""
        flush ruleset
        table ip nat {{
            chain out {{
                type nat hook postrouting priority srcnat
                oifname "eth1" meta l4proto udp masquerade to :{first_port}-{first_port + 9}
            }}
        }}
    """


def ports(wire: Capture) -> set[int]:
    """Return the destination ports of the host's datagrams."""
    return {datagram.destination_port for datagram in wire.datagrams if datagram.outgoing}


def test_nat_rebinding(lab: Lab, engine: str, record: Record) -> None:
    """Every 5 s (immediately, in the short run), the NAT forgets its mapping and uses another port."""
    scene, router = routed(lab, engine)
    times, recovery = count(24, 4), []
    with scene.stream() as stream, Capture(scene.b, "eth0") as wire:
        for number in range(times):
            first = 40000 + 20 * number
            router.nft(masquerade(first))
            forgotten = time.monotonic()
            router.run("conntrack", "-F")
            recovery.append(stream.recovery(forgotten))
            # The echo may have been in flight when the mapping was removed.
            until(lambda first=first: ports(wire) & {*range(first, first + 20)}, "the new port is answered")  # type: ignore[misc]
            hold(count(5, 0))
        assert not wire.of(1), "a handshake was needed"
        assert len(ports(wire)) >= times
    assert max(recovery) < 0.5
    record(
        "NAT rebinding every 5 s",
        "the server answers to the source of the next packet, without a handshake",
        times=times,
        lost=stream.lost_text,
        recovery=recovery,
    )


def test_reordered_by_4096(lab: Lab, engine: str, record: Record) -> None:
    """Blocks of 4,096 data messages arrive in reverse order; each message is accepted once."""
    a, middle, b = lab.switched(3)
    name = implementation(engine)
    _, two = lab.tunnel(a, name, b, name, endpoint="192.0.2.2:5000")
    rounds = count(24, 3)
    total = rounds * 4096
    with ReversingRelay(middle, 5000, ("192.0.2.3", 51821), block=4096) as relay:
        a.ping(two.addresses[0], count=1)
        relay.begin()
        arrived = relay.push(a, b, two.addresses[0], total)
    assert sorted(arrived) == list(range(total))
    assert sum(later < earlier for earlier, later in pairwise(arrived)) > 0.9 * total, (
        "the datagrams were not reordered"
    )
    record("reorder by 4,096", "the replay window of 8,128 accepts all of them", times=rounds, lost=f"0 of {total}")
