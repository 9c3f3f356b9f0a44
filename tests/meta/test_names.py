"""Public classes of the package have different names. Exceptions are listed with a reason."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "wyrmhole"

TWINS = {
    "AsyncTunnelTransport": "httpx and httpx2 are one library under two names",
    "TunnelTransport": "httpx and httpx2 are one library under two names",
    "Peer": "the protocol's peer, the library's handle of it, and the handle of blocking code",
    "Peers": "the library's and its twin for blocking code",
    "Service": "the library's and its twin for blocking code",
    "Tunnel": "the library's and its twin for blocking code",
    "EndpointFlapping": "an event of the protocol, and the same for programs, with a handle of the peer",
    "PeerBack": "an event of the protocol, and the same for programs, with a handle of the peer",
    "PeerSilent": "an event of the protocol, and the same for programs, with a handle of the peer",
    "Roamed": "the data plane's report, the protocol's event, and the same for programs",
    "Refused": "a refusal by the kernel, always written netlink.Refused, and the data plane's report",
    "Message": "always written netlink.Message, and an argument of sendmsg",
    "InitiationSent": "the state that waits for a response, and its event",
    "Route": "the kernel's answer to a look-up, and a route that wg-quick sets",
}
"""Names that several classes share, each with the reason."""
SIMULATED = {"Host", "Network", "Outcome", "Session", "Settings"}
"""Classes of the simulation that are named after the classes they model. No other room imports the simulation."""


def homes() -> dict[str, list[str]]:
    """Return the files that define a public class of each name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(PACKAGE).as_posix())
    return found


def test_no_two_public_classes_share_a_name() -> None:
    for name, files in homes().items():
        if name in SIMULATED:
            files = [file for file in files if not file.startswith("simulation/")]
        assert len(files) == 1 or name in TWINS or not files, f"{name} is defined in {files}: rename one"


def test_each_exception_is_still_needed() -> None:
    found = homes()
    assert not {name for name in TWINS if len(found[name]) < 2}
