"""Sessions between wyrmhole and itself, and between wyrmhole and three other implementations (M1, M3, M17, M36)."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import PEERS, SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import Node
from tests.netns.traffic import transfer

pytestmark = pytest.mark.network

OUTER = {"v4": "192.0.2.2:51821", "v6": "[2001:db8::2]:51821"}
LONG_SECONDS = 10


def two_ends(lab: Lab, peer: str, role: str, family: str = "v4", *, psk: bool = False) -> tuple[Host, Node, Host, Node]:
    """Return the host and node that initiates, then those that only respond."""
    a, b = lab.neighbours()
    first, second = (SUBJECT, peer) if role == "initiator" else (peer, SUBJECT)
    one, two = lab.tunnel(a, first, b, second, endpoint=OUTER[family], psk=psk)
    return a, one, b, two


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("role", "family", "psk"),
    list(itertools.product(("initiator", "responder"), ("v4", "v6"), (False, True))),
    ids=lambda value: {False: "plain", True: "psk"}.get(value, value),
)
def test_a_session_carries_pings_and_bulk_in_both_directions(
    lab: Lab, peer: str, role: str, family: str, psk: bool
) -> None:
    a, one, b, two = two_ends(lab, peer, role, family, psk=psk)
    for number in range(2):
        a.ping(two.addresses[number])
        b.ping(one.addresses[number])
        transfer(a, b, two.addresses[number])
    assert one.latest_handshake(two.key.public) and two.latest_handshake(one.key.public)
    for node, other in ((one, two), (two, one)):
        received, sent = map(int, node.show_of(other.key.public, "transfer"))
        assert received > 10_000_000 and sent > 10_000_000


@pytest.mark.parametrize(
    ("role", "family", "psk"), [("initiator", "v4", False), ("responder", "v6", True)], ids=["v4", "v6-psk"]
)
@pytest.mark.parametrize("peer", PEERS)
def test_ten_seconds_of_bulk_in_each_direction(lab: Lab, peer: str, role: str, family: str, psk: bool) -> None:
    a, _, b, two = two_ends(lab, peer, role, family, psk=psk)
    a.ping(two.addresses[0])
    transfer(a, b, two.addresses[0], seconds=LONG_SECONDS)


@pytest.mark.parametrize("peer", PEERS)
def test_large_pings_and_fragments_arrive(lab: Lab, peer: str) -> None:
    a, _, _, two = two_ends(lab, peer, "initiator")
    for address in two.addresses:
        for size in (0, 1, 15, 16, 17, 1372, 8000):
            a.ping(address, count=2, size=size)


@pytest.mark.parametrize("peer", PEERS)
def test_both_sides_may_initiate_at_once(lab: Lab, peer: str) -> None:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, peer, endpoint=OUTER["v4"], back="192.0.2.1:51820")
    with_b = b.spawn("ping", "-q", "-n", "-c", "1", one.addresses[0], output=subprocess.DEVNULL)
    lab.programs.append(with_b)
    until(lambda: a.can_ping(two.addresses[0]) and b.can_ping(one.addresses[0]), "both can be reached", patience=40)
    a.ping(two.addresses[0], count=20)
    b.ping(one.addresses[0], count=20)


@pytest.mark.parametrize("peer", PEERS)
def test_a_preshared_key_on_only_one_side_prevents_a_session(lab: Lab, peer: str) -> None:
    """Both sides need the same preshared key (M17)."""
    a, one, _, two = two_ends(lab, peer, "initiator")
    one.set(
        "peer", two.key.public, "preshared-key", "/dev/stdin", text="FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\n"
    )
    assert a.count_pings(two.addresses[0], count=1, wait=2) == 0
    assert one.latest_handshake(two.key.public) == 0
