"""Hand-made transport data messages to a running daemon: delivery, refusal, and changes of window and endpoint."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import Node
from tests.netns.raw_peer import RawPeer, Session, lonely_node
from tests.netns.traffic import Capture, Datagram
from tests.support.packets import UDP, Packet

pytestmark = pytest.mark.network

V4 = {1: 0x0A4D0001, 2: 0x0A4D0002, 66: 0x0A4D0042}
"""10.77.0.x"""
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1


_ports = itertools.cycle(range(1024, 65536))


def inner_packet(payload: bytes, source: int = 2) -> bytes:
    """Return a datagram of a new flow, so that it is not merged with its neighbours."""
    return Packet(payload, UDP, source=V4[source], destination=V4[1], ports=(next(_ports), 9)).emit()


@dataclass
class Bench:
    """A node, a raw peer with a confirmed session, and a capture of the packets from the node's tunnel."""

    node: Node
    raw: RawPeer
    session: Session
    tunnel: Capture

    def send(self, payload: bytes, counter: int | None = None) -> bytes:
        message = self.session.seal(inner_packet(payload), counter)
        self.raw.send(message)
        return message

    def delivered(self) -> list[bytes]:
        """Return the payloads that have left the tunnel. A last packet, sent here, marks the end."""
        self.send(b"end")
        until(
            lambda: any(datagram.payload == b"end" for datagram in self._incoming()),
            "the last packet leaves the tunnel",
        )
        payloads = [datagram.payload for datagram in self._incoming()]
        self.tunnel.forget()
        return payloads[:-1]

    def _incoming(self) -> list[Datagram]:
        return [datagram for datagram in self.tunnel.datagrams if not datagram.outgoing]


@pytest.fixture
def bench(lab: Lab) -> Iterator[Bench]:
    node, raw = lonely_node(lab, SUBJECT)
    with raw, Capture(node.host, node.name) as tunnel:
        yield Bench(node, raw, raw.connect(), tunnel)


# Messages from outside


def test_a_forged_message_does_not_move_the_window(bench: Bench) -> None:
    """Wrong tags at high counters, unknown indices, reserved bits and truncated messages are dropped (M7, M8, M23)."""
    true = bench.session.seal(inner_packet(b"true"), 50)
    bad_tag = true[:-1] + bytes([true[-1] ^ 1])
    for counter in (10**6, 2**63, 2**64 - 1):
        bench.raw.send(true[:8] + counter.to_bytes(8, "little") + true[16:])
    bench.raw.send(bad_tag, true[:31], true[:16], true[:40], true[:4] + os.urandom(4) + true[8:], true + b"\0")
    bench.raw.send(*(true[:at] + bytes([1 << bit]) + true[at + 1 :] for at in (1, 2, 3) for bit in range(8)))
    assert bench.delivered() == []
    bench.raw.send(true)
    assert bench.delivered() == [b"true"]


def test_each_message_is_delivered_once(bench: Bench) -> None:
    """A repeated message is dropped (I3)."""
    message = bench.send(b"once")
    bench.raw.send(message, message)
    assert bench.delivered() == [b"once"]


def test_the_window_accepts_a_delay_of_8127_but_not_8129(bench: Bench) -> None:
    """The replay window covers 8,128 counters (M24)."""
    bench.send(b"first", 20_000)
    for behind, name in ((1, b"near"), (4000, b"middle"), (8127, b"last"), (8129, b"late"), (20_000, b"zero")):
        bench.send(name, 20_000 - behind)
    bench.session.counter = 20_001
    assert bench.delivered() == [b"first", b"near", b"middle", b"last"]


def test_counters_end_at_reject_after_messages(bench: Bench) -> None:
    """Reject-After-Messages is the first counter that is refused (M25)."""
    for counter in (REJECT_AFTER_MESSAGES, 2**64 - 1):
        bench.send(b"beyond", counter)
    assert bench.delivered() == []
    bench.send(b"the last", REJECT_AFTER_MESSAGES - 1)
    until(
        lambda: [datagram.payload for datagram in bench.tunnel.datagrams] == [b"the last"],
        "the message with the last counter is delivered",
    )


def test_a_reflected_message_is_dropped(bench: Bench) -> None:
    """The node's own messages are sent back to it."""
    bench.node.host.count_pings("10.77.0.2", 1, wait=1)
    echo = bench.raw.receive(4)
    bench.raw.send(echo)
    assert bench.delivered() == []


# Messages of an authenticated peer


def test_a_disallowed_source_is_dropped_but_moves_the_endpoint(bench: Bench) -> None:
    """The message is authentic, so the endpoint follows its sender (M44, M45)."""
    bench.raw.move(("192.0.2.2", 40002))
    bench.raw.send(bench.session.seal(inner_packet(b"borrowed", source=66)))
    until(lambda: bench.node.show_of(bench.raw.key.public, "endpoints") == ["192.0.2.2:40002"], "the endpoint follows")
    assert bench.delivered() == []


def test_a_packet_with_a_wrong_inner_length_is_dropped(bench: Bench) -> None:
    """The inner length is impossible (M47)."""
    packet = inner_packet(b"lie")
    for claimed in (0, 19, len(packet) + 1, 65_535):
        bench.raw.send(bench.session.seal(packet[:2] + claimed.to_bytes(2, "big") + packet[4:]))
    six = Packet(b"lie", UDP, version=6, source=0xFD770000 << 96 | 2, destination=0xFD770000 << 96 | 1).emit()
    bench.raw.send(bench.session.seal(six[:4] + (len(six) - 39).to_bytes(2, "big") + six[6:]))
    for first in (0x05, 0x35, 0x55, 0x75, 0xF5):
        bench.raw.send(bench.session.seal(bytes([first]) + packet[1:]))
    bench.raw.send(bench.session.seal(b"\x45"), bench.session.seal(packet[:19]), bench.session.seal(os.urandom(64)))
    assert bench.delivered() == []


def test_padding_is_removed_and_optional(bench: Bench) -> None:
    """Messages with more padding than necessary, or without padding, are accepted (M22, M47)."""
    for extra in (0, 1, 13, 200):
        bench.raw.send(bench.session.seal(inner_packet(b"padded") + bytes(extra)))
    assert bench.delivered() == [b"padded"] * 4


def test_an_empty_message_is_a_keepalive(bench: Bench) -> None:
    """It is neither delivered nor answered (M33)."""
    bench.raw.send(*(bench.session.seal() for _ in range(5)))
    assert bench.delivered() == []
    assert [message for message in bench.raw.waiting(wait=0.3) if len(message) == 32] == []


# Messages of the node


def test_counters_start_at_zero_and_increase_by_one(bench: Bench) -> None:
    """The counters of each key have no gap (M20, I2)."""
    host: Host = bench.node.host
    host.count_pings("10.77.0.2", 5, wait=1)
    messages = [bench.raw.receive(4) for _ in range(5)]
    assert [int.from_bytes(message[8:16], "little") for message in messages] == [0, 1, 2, 3, 4]
    assert all(len(bench.session.open(message)) % 16 == 0 for message in messages)


def test_a_responder_does_not_use_an_unconfirmed_key(lab: Lab) -> None:
    """Pings are staged until the initiator has sent a packet, and then leave (M18)."""
    node, raw = lonely_node(lab, SUBJECT)
    with raw:
        session = raw.begin()
        assert node.host.count_pings("10.77.0.2", 2, wait=1) == 0
        assert [message for message in raw.waiting(wait=0.3) if message[0] == 4] == []
        raw.send(session.seal())
        assert session.open(raw.receive(4))[0] == 0x45


def test_sessions_overlap_so_that_late_packets_are_delivered(bench: Bench) -> None:
    """A packet of the previous session is delivered while the next is in use, but not after two more (M36)."""
    former = bench.session
    late = [former.seal(inner_packet(b"late")) for _ in range(2)]
    bench.session = bench.raw.connect()
    assert bench.delivered() == []
    bench.raw.send(late[0])
    assert bench.delivered() == [b"late"]
    for _ in range(2):
        bench.session = bench.raw.connect()
        assert bench.delivered() == []
    bench.raw.send(late[1])
    assert bench.delivered() == []
