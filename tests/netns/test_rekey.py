"""Renewal of sessions under traffic, with timings divided by sixty (L4, M27, M30, M36)."""

from __future__ import annotations

import pytest

from tests.netns.host import until
from tests.netns.implementations import OTHERS
from tests.netns.lab import Lab
from tests.netns.traffic import Capture, iperf, iperf_server

pytestmark = pytest.mark.network

SHORT = "wyrmhole-short"
ENDPOINT = "192.0.2.2:51821"


@pytest.mark.parametrize("peer", [SHORT, *OTHERS])
def test_no_ping_is_lost_during_renewals(lab: Lab, peer: str) -> None:
    """For 7 s, with a new session every 2 s, each ping is answered once (L4)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SHORT, b, peer, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    with Capture(b, "eth0") as wire:
        a.ping(two.addresses[0], count=350)
        assert len(wire.of(1)) >= 3


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["out", "in"])
@pytest.mark.parametrize("peer", [SHORT, *OTHERS])
def test_no_bulk_datagram_is_lost_during_renewals(lab: Lab, peer: str, direction: tuple[str, ...]) -> None:
    """Data is in flight under both keys; the rate is far below the path's capacity (M36)."""
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, SHORT, b, peer, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    with Capture(b, "eth0", data=False) as wire, iperf_server(b, two.addresses[0]):
        slow = iperf(a, two.addresses[0], "-u", "-b", "20M", "-l", "1200", *direction, seconds=6)["sum"]
        fast = iperf(a, two.addresses[0], *direction, seconds=5)["sum_received"]["bytes"]
        assert len(wire.of(1)) >= 4
    assert slow["packets"] > 5000 and slow["lost_packets"] == 0
    assert fast > 10_000_000


def test_only_the_first_initiator_renews(lab: Lab) -> None:
    """The responder never initiates, whatever the direction of the traffic (M27)."""
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SHORT, b, SHORT, endpoint=ENDPOINT, back="192.0.2.1:51820")
    a.ping(two.addresses[0])
    with Capture(b, "eth0") as wire:
        b.ping(one.addresses[0], count=200)
        begun = wire.of(1)
    assert begun and not any(datagram.outgoing for datagram in begun)


def test_a_restarted_peer_is_reached_again(lab: Lab) -> None:
    """The other daemon is killed and restarted, and only this side sends (L2, M34)."""
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SHORT, b, SHORT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    configuration = two.wg("showconf", two.name)
    two.process.kill()
    two.process.wait()
    again = lab.node(b, SHORT, port=two.port)
    again.wg("setconf", again.name, "/dev/stdin", text=configuration)
    again.assign("10.77.0.2/24")
    again.up()
    until(lambda: a.can_ping("10.77.0.2"), "there is a session with the restarted peer")
    assert one.latest_handshake(two.key.public)
