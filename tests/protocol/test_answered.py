"""Reports of a data plane that answers initiations by itself, at moments when the interface has changed meanwhile."""

from __future__ import annotations

import os

from wyrmhole.protocol.data_plane import Answered, KeyConfirmed, KeypairsDropped, KeyWanted, Marks
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import MESSAGE_INITIATION

HERE = Endpoint("192.0.2.1", 1000)
SECOND = 1_000_000_000


class AnsweringPlane:
    """A data plane that answers initiations; it records what is sent and ignores every other call."""

    answers_initiations = True

    def __init__(self) -> None:
        self.identity = 0
        self.sent: list[bytes] = []

    def answer_initiations(self, private_key: bytes | None, limits: object) -> int:
        self.identity += 1
        return self.identity

    def begin_initiation(self, local_index: int) -> bool:
        return True

    def send_to_peer(self, peer: int, datagram: bytes) -> None:
        self.sent.append(datagram)

    def marks(self, peer: int) -> Marks:
        return Marks()

    release_activity = marks

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **named: None


def interface() -> tuple[Interface, AnsweringPlane]:
    plane = AnsweringPlane()
    made = Interface(plane, random=os.urandom, wall_clock=lambda: 0, now=SECOND)  # type: ignore[arg-type]
    made.set_private_key(PrivateKey(b"\x01" * 32), SECOND)
    made.up(SECOND)
    return made, plane


def test_a_session_of_the_former_key_does_not_keep_the_next_packet_waiting() -> None:
    """Its report, and the confirmation, are read only after the private key has changed."""
    made, plane = interface()
    peer = made.add_peer(PrivateKey(b"\x02" * 32).public_key())
    assert peer is not None
    made.set_endpoint(peer, HERE, SECOND)
    former = plane.identity
    made.set_private_key(PrivateKey(b"\x03" * 32), 2 * SECOND)
    made.handle_report(Answered(peer.id, HERE, 7, former, 2 * SECOND), 2 * SECOND)
    made.handle_report(KeyConfirmed(peer.id, 7), 2 * SECOND)
    assert peer.session is None
    made.handle_report(KeyWanted(peer.id), 10 * SECOND)
    assert [datagram[0] for datagram in plane.sent] == [MESSAGE_INITIATION]
    made.handle_report(KeypairsDropped(peer.id, (7,)), 11 * SECOND)
    assert 7 not in made.exchange.indices


def test_a_session_of_the_present_key_needs_no_initiation() -> None:
    made, plane = interface()
    peer = made.add_peer(PrivateKey(b"\x02" * 32).public_key())
    assert peer is not None
    made.handle_report(Answered(peer.id, HERE, 7, plane.identity, 2 * SECOND), 2 * SECOND)
    made.handle_report(KeyConfirmed(peer.id, 7), 2 * SECOND)
    assert peer.session is not None
    assert peer.endpoint == HERE
    made.handle_report(KeyWanted(peer.id), 3 * SECOND)
    assert plane.sent == []
