"""Real daemons, a real network: wyrmhole with each other implementation, in both roles."""

from __future__ import annotations

import itertools

import pytest

from tests.interop.lab import connect, pair_of_hosts, run

pytestmark = pytest.mark.network

OTHERS = ("wyrmhole", "wireguard-go", "boringtun", "gotatun")
ROLES = ("initiator", "responder")


@pytest.mark.parametrize(("v6", "psk"), list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("other", OTHERS)
def test_handshake_and_traffic(other: str, role: str, v6: bool, psk: bool) -> None:
    """M1, M2, M3, M17, M19: both roles, with and without a preshared key, IPv4 and IPv6 outside and inside."""
    with pair_of_hosts() as lab:
        ours = lab.node("wyrmhole", lab.hosts[0], 1)
        theirs = lab.node(other, lab.hosts[1], 2)
        first, second = (ours, theirs) if role == "initiator" else (theirs, ours)
        connect(ours, theirs, v6=v6, psk=run(["wg", "genpsk"]) if psk else None)
        first.ping(second.inner4)
        second.ping(first.inner6)
        first.exec("ping", "-n", "-q", "-c", "1", "-s", "1392", "-M", "do", "-W", "5", second.inner4)
        assert ours.handshakes() > 0


@pytest.mark.parametrize("other", OTHERS)
def test_ten_seconds_of_iperf_each_way(other: str) -> None:
    with pair_of_hosts() as lab:
        ours = lab.node("wyrmhole", lab.hosts[0], 1)
        theirs = lab.node(other, lab.hosts[1], 2)
        connect(ours, theirs)
        ours.reach(theirs)
        with theirs.iperf_server():
            for direction in ((), ("-R",)):
                end = ours.iperf(theirs, *direction, seconds=10)
                assert end["sum_received"]["bytes"] > 50e6
            udp = ours.iperf(theirs, "-u", "-b", "50M", "-l", "1300")["sum"]
            assert udp["lost_percent"] < 1


@pytest.mark.parametrize("other", OTHERS[1:])
def test_one_sided_preshared_key_never_connects(other: str) -> None:
    """M17."""
    with pair_of_hosts() as lab:
        ours = lab.node("wyrmhole", lab.hosts[0], 1)
        theirs = lab.node(other, lab.hosts[1], 2)
        connect(ours, theirs)
        ours.wg("set", ours.name, "peer", theirs.public, "preshared-key", "/dev/stdin", stdin=run(["wg", "genpsk"]))
        assert not ours.ping(theirs.inner4, check=False)
        assert ours.handshakes() == 0
