"""`make demo` shows what the README promises, or says why it shows less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"

pytestmark = pytest.mark.network


def demo(*before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, str(DEMO)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_two_daemons_in_namespaces_exchange_traffic() -> None:
    lines = demo().splitlines()
    assert "each in its own network namespace" in lines[0]
    assert [line.split("  ")[1] for line in lines[1:4]] == [
        "handshake and first ping",
        "5 pings, on average",
        "TCP transfer",
    ]
    for start in ("interface: demo0", "  private key: (hidden)", "peer: ", "  latest handshake: ", "  transfer: "):
        assert any(line.startswith(start) for line in lines), start


def test_without_a_tun_it_says_why_and_shows_memory() -> None:
    hide = 'mount -t tmpfs none /dev/net && exec "$@"'
    lines = demo("unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh").splitlines()
    assert "on memory TUNs inside this process (there is no /dev/net/tun: modprobe tun" in lines[0]
    assert any(line.startswith("  latest handshake: ") for line in lines)
