"""A daemon under strain: garbage, peers of both families, signals under traffic, and changes under traffic."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from tests.netns.host import end, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, peer_section

pytestmark = pytest.mark.network

ENDPOINT = "192.0.2.2:51821"


def test_garbage_of_every_length_is_not_answered(lab: Lab) -> None:
    """The garbage has all types and lengths; the tunnel still works afterwards (M50)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    with a.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rude:
        rude.connect(("192.0.2.2", 51821))
        for size in [*range(200), 1500, 9000, 65507]:
            for kind in range(6):
                rude.send((bytes((kind, 0, 0, 0)) + os.urandom(size))[:size])
        a.ping(two.addresses[0])
        rude.setblocking(False)
        with pytest.raises(BlockingIOError):
            rude.recv(65535)


def test_peers_of_both_families_do_not_disturb_each_other(lab: Lab) -> None:
    """After IPv4 traffic, wireguard-go sends IPv6 to a truncated address."""
    center, *spokes = lab.switched(3)
    hub = lab.node(center, SUBJECT)
    nodes = [lab.node(spoke, SUBJECT) for spoke in spokes]
    endpoints = ("192.0.2.{}:51820", "[2001:db8::{}]:51820")
    for number, node in enumerate(nodes, 2):
        endpoint = endpoints[number - 2]
        node.configure(peer_section(hub.key.public, *inner(1), endpoint=endpoint.format(1)))
        node.assign(*inner(number, 24, 64))
    hub.configure(
        *(
            peer_section(node.key.public, *inner(number), endpoint=endpoints[number - 2].format(number))
            for number, node in enumerate(nodes, 2)
        )
    )
    hub.assign(*inner(1, 24, 64))
    for node in (*nodes, hub):
        node.up()
    for _ in range(3):
        for node in nodes:
            center.ping(node.addresses[0])
            node.host.ping(hub.addresses[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_under_traffic_ends_the_daemon_cleanly(lab: Lab, number: signal.Signals) -> None:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    flood = a.spawn("ping", "-q", "-n", "-f", "-w", "30", two.addresses[0], output=subprocess.DEVNULL)
    try:
        until(lambda: int(one.show_of(two.key.public, "transfer")[1]) > 200_000, "traffic flows")
        one.process.send_signal(number)
        assert one.process.wait(10) == 0
    finally:
        end(flood)
    assert not one.socket.exists()


def test_changes_of_other_peers_lose_no_packet(lab: Lab) -> None:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    words = ("ping", "-q", "-n", "-c", "100", "-i", "0.02", "-W", "5", two.addresses[0])
    pinging = a.spawn(*words, output=subprocess.PIPE)
    for number in range(20):
        public = Key.generate().public
        one.set("peer", public, "allowed-ips", f"10.88.{number}.0/24")
        one.set("peer", public, "remove")
    out, _ = pinging.communicate(timeout=60)
    assert " 0% packet loss" in out
