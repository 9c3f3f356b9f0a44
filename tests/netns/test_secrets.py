"""Search a daemon's memory, log, arguments and environment for the keys of ended sessions.

The test knows the keys because it is the other side of the handshake, so the daemon needs no instrumentation. While the
session lives, each test shows that the search finds its keys. Session timings are divided by sixty.
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
from tests.support.engines import chosen
from tests.support.packets import UDP, Packet

pytestmark = pytest.mark.network

SHORT = "wyrmhole-short"


def has_vector() -> bool:
    """Whether libIPSec_MB is available to the native engine. It is optional, so no test fails without it."""
    try:
        from wyrmhole.engine.native import NativeEngine

        NativeEngine(lambda: 0, threaded=False, aead="vector").close()
    except (ImportError, ValueError):
        return False
    return True


ENGINES = ["portable", "native-aws-lc", *(["native-vector"] if has_vector() else [])]


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine and the cipher backend of the daemon."""
    kind, _, aead = request.param.partition("-")
    monkeypatch.setenv("WYRMHOLE_ENGINE", kind)
    monkeypatch.setenv("WYRMHOLE_AEAD", aead or "auto")
    with chosen(kind):
        yield


HALF = 16
"""Finding half of a key counts as finding the key."""


def memory(pid: int) -> Iterator[tuple[str, bytes]]:
    """Yield everything readable in the process's address space, like a core dump, with the name of each mapping."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as source:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)", line)
            if found is None or found[3].startswith("[v"):
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            source.seek(start)
            try:
                yield f"{found[1]}-{found[2]} {found[3] or 'anonymous'}", source.read(end - start)
            except OSError:
                # It was unmapped after the list was read.
                continue


def halves(sessions: list[Session]) -> list[bytes]:
    keys = [key for session in sessions for key in (session.send_key, session.receive_key)]
    return [key[at : at + HALF] for key in keys for at in (0, HALF)]


def traces(node: Node, patterns: list[bytes]) -> list[str]:
    """Return the places in the daemon's memory where one of the patterns occurs."""
    parts = memory(node.process.pid)
    return [
        f"half {number} at {found.start():#x} of {name}"
        for name, content in parts
        for number, pattern in enumerate(patterns)
        for found in re.finditer(re.escape(pattern), content)
    ]


def wait_until_gone(node: Node, sessions: list[Session]) -> None:
    """Wait until none of the sessions' keys is in memory. Raises AssertionError with the places of remaining keys."""
    left: list[str] = []

    def look() -> bool:
        left[:] = traces(node, halves(sessions))
        return not left

    try:
        until(look, "all session keys are gone")
    except AssertionError:
        raise AssertionError("session keys are left:\n" + "\n".join(left)) from None


def exchange_packets(raw: RawPeer, session: Session) -> None:
    """Exchange packets long enough for every backend: ICMP answers a closed port and quotes the packet."""
    packet = Packet(bytes(1000), UDP, source=0x0A4D0002, destination=0x0A4D0001, ports=(9, 9)).emit()
    raw.send(session.seal(packet))
    while len(session.open(raw.receive(4))) < len(packet) // 2:
        pass


def expire(_node: Node, _raw: RawPeer) -> None:
    """Let three times Reject-After-Time pass without a new session: 540 s, here 9 s."""


def remove_the_peer(node: Node, raw: RawPeer) -> None:
    node.set("peer", raw.key.public, "remove")


def set_the_interface_down(node: Node, _raw: RawPeer) -> None:
    node.down()


@pytest.mark.parametrize("end", [expire, remove_the_peer, set_the_interface_down], ids=lambda end: end.__name__)
def test_no_session_key_is_left_in_memory(lab: Lab, end: Callable[[Node, RawPeer], None]) -> None:
    """The daemon is the responder, and several sessions replace each other (M35)."""
    node, raw = lonely_node(lab, SHORT)
    with raw:
        sessions = []
        for _ in range(3):
            sessions.append(raw.connect())
            exchange_packets(raw, sessions[-1])
        assert traces(node, halves(sessions[-1:])), "the search finds a key that is in use"
        end(node, raw)
        wait_until_gone(node, sessions)


def test_no_key_of_a_session_that_the_daemon_initiated_is_left(lab: Lab) -> None:
    node, raw = lonely_node(lab, SHORT, knows_endpoint=True, keepalive=60)
    with raw:
        answer, session = raw.respond(raw.receive(1))
        raw.send(answer)
        until(lambda: traces(node, halves([session])), "the search finds a key that is in use")
        exchange_packets(raw, session)
        node.set("peer", raw.key.public, "remove")
        wait_until_gone(node, [session])


def forms(secret: bytes) -> list[bytes]:
    """Return the printed forms of the secret."""
    return [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()]


def test_no_key_is_in_log_arguments_or_environment(lab: Lab) -> None:
    """The daemon logs at the most verbose level, and sees a handshake, data and garbage."""
    node, raw = lonely_node(lab, SHORT)
    with raw:
        session = raw.connect()
        raw.send(session.seal(b"nonsense"), b"\4\0\0\0" + bytes(40))
        until(lambda: node.show_of(raw.key.public, "transfer")[0] != "0", "the daemon receives data")
        searched = b"".join(Path(f"/proc/{node.process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        node.stop()
    searched += node.log.read_bytes()
    assert b"keypair created" in searched and node.name.encode() in searched
    secrets = [base64.b64decode(node.key.private), session.send_key, session.receive_key]
    assert not [form for secret in secrets for form in forms(secret) if form in searched]
