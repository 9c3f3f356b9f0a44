"""`doctor --to` over a good line, over one that loses GSO batches, and where no result is possible."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.gso_damage import loses_batches
from tests.netns.host import Host, end, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import Node
from tests.netns.traffic import iperf_server

pytestmark = pytest.mark.network

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
ENDPOINTS = {"v4": "192.0.2.2:51821", "v6": "[2001:db8::2]:51821"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


def ends(lab: Lab, family: str = "v4") -> tuple[Host, Node, Host, Node]:
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, SUBJECT, b, SUBJECT, endpoint=ENDPOINTS[family])
    return a, one, b, two


def doctor(host: Host, peer: str) -> subprocess.CompletedProcess[str]:
    return host.try_run(WYRMHOLE, "doctor", "--json", "--to", peer, timeout=60)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_arriving_batches_are_reported_as_good(
    lab: Lab, engine: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WYRMHOLE_ENGINE", engine)
    a, one, _, two = ends(lab, family)
    result = doctor(a, two.addresses[0] if family == "v4" else two.addresses[1])
    findings = json.loads(result.stdout)
    assert result.returncode == 0, "\n".join(map(str, findings))
    assert findings[0]["found"].startswith(f"{two.key.public} of {one.name}")
    assert findings[-1]["found"].startswith("arrive")


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_lost_batches_are_reported(lab: Lab, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WYRMHOLE_ENGINE", engine)
    a, _, _, two = ends(lab)
    a.ping(two.addresses[0])
    with loses_batches(a, "eth0"):
        result = doctor(a, two.key.public)
        findings = json.loads(result.stdout)
        assert result.returncode == 1, findings
        assert "WYRMHOLE_WITHOUT=gso" in findings[-1]["advice"]
        text = a.try_run(WYRMHOLE, "doctor", "--to", two.key.public, timeout=60)
        assert text.returncode == 1 and "NO  batches" in text.stdout


def test_no_result_without_gso(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WYRMHOLE_WITHOUT", "gso")
    a, _, _, two = ends(lab)
    with loses_batches(a, "eth0"):
        result = doctor(a, two.addresses[0])
    assert result.returncode == 2
    assert "only single datagrams" in json.loads(result.stdout)[-1]["found"]


def test_no_result_if_the_peer_does_not_answer_ping(lab: Lab) -> None:
    a, _, b, two = ends(lab)
    b.nft("table ip t { chain c { type filter hook input priority 0; icmp type echo-request drop; }; }")
    result = doctor(a, two.addresses[0])
    assert result.returncode == 2
    assert "does not answer ping" in json.loads(result.stdout)[-1]["found"]


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ("192.0.2.200", "no running tunnel has a peer for 192.0.2.200"),
        ("A" * 43 + "=", "no running tunnel has this peer"),
        ("wg0", "'wg0' is neither a public key nor an address inside a tunnel"),
    ],
)
def test_unknown_peer_is_one_clear_error(lab: Lab, peer: str, reason: str) -> None:
    a, _, _, _ = ends(lab)
    result = doctor(a, peer)
    assert result.returncode == 2
    assert reason in json.loads(result.stdout)[-1]["found"]


@pytest.mark.parametrize(("engine", "congestion"), [("native", "bbr"), ("portable", "reno")])
def test_daemon_notices_lost_batches_by_itself(
    lab: Lab, engine: str, congestion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bulk transfer is slow for a few seconds, then fast. One log line reports the cause and a remedy."""
    if congestion not in AVAILABLE.read_text().split():
        pytest.skip(f"this kernel has no {congestion}")
    monkeypatch.setenv("WYRMHOLE_ENGINE", engine)
    a, one, b, two = ends(lab)
    a.ping(two.addresses[0])
    with loses_batches(a, "eth0"):
        with iperf_server(b, two.addresses[0]):
            command = ["iperf3", "-c", two.addresses[0], "-C", congestion, "-t", "150"]
            client = a.spawn(*command, output=subprocess.DEVNULL)
            try:
                until(lambda: "GSO batches are lost" in one.log.read_text(), "the daemon finds out", patience=120)
            finally:
                end(client)
        log = one.log.read_text()
        lines = [line for line in log.splitlines() if "GSO batches are lost" in line]
        assert len(lines) == 1, log
        assert lines[0].startswith("ERROR") and two.key.public in lines[0]
        assert "WYRMHOLE_WITHOUT=gso" in lines[0] and "doctor --to" in lines[0]
        result = doctor(a, two.addresses[0])
        assert result.returncode == 2, "the daemon now sends single datagrams"
