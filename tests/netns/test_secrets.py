"""What of a session is left behind in a daemon: its memory, log, arguments and environment are searched for its keys.

The keys are known because the test is the other side of the handshake, so the daemon is the product with nothing added.
That the search finds anything is shown each time while the session lives. A session's times are divided by sixty.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.host import until
from tests.netns.lab import Lab
from tests.netns.node import Node
from tests.netns.raw_peer import RawPeer, Session, lonely_node

pytestmark = pytest.mark.network

SHORT = "wyrmhole-short"


@pytest.fixture(autouse=True)
def portable_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the native one leaves on the stacks of its threads is told in docs/security.md."""
    monkeypatch.setenv("WYRMHOLE_ENGINE", "portable")


HALF = 16
"""A key counts as found when one half of it is."""


def memory(pid: int) -> Iterator[bytes]:
    """What a core of the process would hold: all that is readable in its address space."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as source:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)", line)
            if found is None or found[3].startswith("[v"):
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            source.seek(start)
            try:
                yield source.read(end - start)
            except OSError:
                # Unmapped since the list was read.
                continue


def halves(sessions: list[Session]) -> list[bytes]:
    keys = [key for session in sessions for key in (session.send_key, session.receive_key)]
    return [key[at : at + HALF] for key in keys for at in (0, HALF)]


def traces(node: Node, patterns: list[bytes]) -> int:
    """How often any of the patterns is in the memory of the daemon."""
    return sum(content.count(pattern) for content in memory(node.process.pid) for pattern in patterns)


def expire(_node: Node, _raw: RawPeer) -> None:
    """Three times Reject-After-Time without a new session: 540 s, here nine."""


def remove_the_peer(node: Node, raw: RawPeer) -> None:
    node.set("peer", raw.key.public, "remove")


def set_the_interface_down(node: Node, _raw: RawPeer) -> None:
    node.down()


@pytest.mark.parametrize("end", [expire, remove_the_peer, set_the_interface_down], ids=lambda end: end.__name__)
def test_no_session_key_is_left_in_memory(lab: Lab, end: Callable[[Node, RawPeer], None]) -> None:
    """B72, M35: the daemon as responder, with sessions replaced by others on the way."""
    node, raw = lonely_node(lab, SHORT)
    with raw:
        sessions = [raw.connect() for _ in range(3)]
        assert traces(node, halves(sessions[-1:])) > 0, "the search finds a key that is in use"
        end(node, raw)
        until(lambda: traces(node, halves(sessions)) == 0, "all session keys are gone")


def test_no_session_key_is_left_after_a_session_that_the_daemon_began(lab: Lab) -> None:
    node, raw = lonely_node(lab, SHORT, knows_endpoint=True, keepalive=60)
    with raw:
        answer, session = raw.respond(raw.receive(1))
        raw.send(answer)
        until(lambda: traces(node, halves([session])) > 0, "the search finds a key that is in use")
        node.set("peer", raw.key.public, "remove")
        until(lambda: traces(node, halves([session])) == 0, "all session keys are gone")


def forms(secret: bytes) -> list[bytes]:
    """As it would be printed."""
    return [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()]


def test_no_key_is_in_the_log_the_arguments_or_the_environment(lab: Lab) -> None:
    """At the level that says the most, with a handshake, data and nonsense."""
    node, raw = lonely_node(lab, SHORT)
    with raw:
        session = raw.connect()
        raw.send(session.seal(b"nonsense"), b"\4\0\0\0" + bytes(40))
        until(lambda: node.show_of(raw.key.public, "transfer")[0] != "0", "data was seen")
        said = b"".join(Path(f"/proc/{node.process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        node.stop()
    said += node.log.read_bytes()
    assert b"handshake completed" in said and node.name.encode() in said
    secrets = [base64.b64decode(node.key.private), session.send_key, session.receive_key]
    assert not [form for secret in secrets for form in forms(secret) if form in said]
