"""The native engine answers initiations itself. These cases are not covered by the protocol's scenarios."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.edges import ListBind, ListTun
from wyrmhole.engine.native import NativeEngine
from wyrmhole.protocol.cookie import CookieGenerator, mac1_key
from wyrmhole.protocol.data_plane import (
    Answered,
    HandshakeDatagram,
    KeypairsDropped,
    Refused,
    Report,
    SessionLimits,
    Stranger,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.exchange import Exchange
from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.protocol.peer import Peer
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import MESSAGE_COOKIE_REPLY, MESSAGE_INITIATION, MESSAGE_RESPONSE

SECOND = 1_000_000_000
LIMITS = SessionLimits(
    reject_after=180 * SECOND, send_for=175 * SECOND, rekey_after_messages=1 << 60, reject_after_messages=(1 << 64) - 1
)
OWN = PrivateKey(b"\x07" * 32)
HERE = Endpoint("192.0.2.1", 1000)


class Responder:
    """A native engine with a static key; `answers` holds the messages that it sent."""

    def __init__(self, *, threaded: bool = False, workers: int = 1) -> None:
        self.now = 1000 * SECOND
        self.answers: list[bytes] = []
        self.arrived = threading.Event()
        self.engine = NativeEngine(lambda: self.now, threaded=threaded, workers=workers)
        self.bind = ListBind(self._keep)
        self.engine.attach_tun(ListTun())
        self.engine.attach_bind(self.bind, 51820)
        self.set_key(OWN)

    def _keep(self, sockaddr: object, datagram: bytes, source: object, tos: int) -> None:
        self.answers.append(datagram)
        self.arrived.set()

    def set_key(self, key: PrivateKey | None) -> None:
        self.engine.set_mac1_key(None if key is None else mac1_key(key.public_key()))
        self.identity = self.engine.answer_initiations(None if key is None else key.raw, LIMITS)

    def know(self, peer: int, key: PrivateKey, psk: bytes | None = None) -> None:
        self.engine.add_peer(peer)
        self.engine.set_identity(peer, key.public_key().raw, psk)

    def receive(self, *messages: bytes, endpoint: Endpoint = HERE, queue_depth: int = 0) -> list[int]:
        """Return the types of the messages that the engine answers with."""
        before = len(self.answers)
        for message in messages:
            self.bind.arrive(message, endpoint.sockaddr, source=b"source")
        self.engine.turn(queue_depth=queue_depth)
        return [answer[0] for answer in self.answers[before:]]

    def reports(self) -> list[Report]:
        kinds = (Answered, Stranger, Refused, KeypairsDropped)
        return [report for report in self.engine.poll_reports() if isinstance(report, kinds)]


class Initiator:
    """A peer that initiates handshakes with the responder; its clock advances by one second per initiation."""

    def __init__(self, number: int, psk: bytes | None = None) -> None:
        self.key = PrivateKey(bytes((number % 255 + 1,)) * 31 + bytes((number // 255 + 1,)))
        self._wall = 1_700_000_000 * SECOND
        self.exchange = Exchange(PeerStore(), os.urandom, lambda: self._wall)
        self.exchange.set_private_key(self.key)
        self.peer: Peer = self.exchange.peers.create(OWN.public_key())
        self.peer.preshared_key = None if psk is None else PresharedKey(psk)

    def initiate(self) -> bytes:
        self._wall += SECOND
        message = self.exchange.create_initiation(self.peer, 0)
        assert message is not None
        return message


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder()
    yield made
    made.engine.close()


def test_an_answer_is_reported_with_its_session(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(5, initiator.key)
    assert responder.receive(initiator.initiate()) == [MESSAGE_RESPONSE]
    (report,) = responder.reports()
    index = int.from_bytes(responder.answers[0][4:8], "little")
    assert report == Answered(5, HERE, index, responder.identity, responder.now)


def test_an_initiation_is_answered_once(responder: Responder) -> None:
    """The timestamp must increase (M12)."""
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    first, second = initiator.initiate(), initiator.initiate()
    assert responder.receive(first) == [MESSAGE_RESPONSE]
    responder.now += SECOND
    assert responder.receive(first) == []
    assert responder.receive(second) == [MESSAGE_RESPONSE]
    assert responder.receive(first, second) == []
    assert responder.engine.drops()[DropReason.REPLAYED_HANDSHAKE] == 3
    assert responder.engine.peer_drops(1)[DropReason.REPLAYED_HANDSHAKE] == 3


def test_initiations_of_a_peer_are_rate_limited(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    assert responder.receive(*[initiator.initiate() for _ in range(10)]) == [MESSAGE_RESPONSE]
    assert responder.engine.drops()[DropReason.HANDSHAKE_FLOOD] == 9
    responder.now += SECOND // 50
    assert responder.receive(initiator.initiate()) == [MESSAGE_RESPONSE]


def test_an_unknown_peer_is_reported_with_its_key_on_request(responder: Responder) -> None:
    stranger = Initiator(1)
    assert responder.receive(stranger.initiate()) == []
    assert responder.reports() == []
    responder.engine.report_refusals(True)
    assert responder.receive(stranger.initiate()) == []
    assert responder.reports() == [Stranger(stranger.key.public_key().raw, HERE)]
    assert responder.engine.drops()[DropReason.UNKNOWN_PEER] == 2


def test_a_removed_peer_is_unknown_until_it_is_added_again(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    assert responder.receive(first := initiator.initiate()) == [MESSAGE_RESPONSE]
    responder.engine.remove_peer(1)
    assert responder.receive(initiator.initiate()) == []
    responder.know(2, initiator.key)
    assert responder.receive(first) == [MESSAGE_RESPONSE], "a new peer has no recorded timestamp"
    assert [report.peer for report in responder.reports() if isinstance(report, Answered)] == [1, 2]


def test_only_initiations_for_the_current_private_key_are_answered(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    waiting = initiator.initiate()
    responder.set_key(PrivateKey(b"\x09" * 32))
    assert responder.receive(waiting) == []
    responder.set_key(None)
    assert responder.receive(waiting) == []
    responder.set_key(OWN)
    assert responder.receive(waiting) == [MESSAGE_RESPONSE]
    drops = responder.engine.drops()
    assert drops[DropReason.BAD_MAC1] == drops[DropReason.NO_PRIVATE_KEY] == 1


@pytest.mark.parametrize("psk", [None, b"\x55" * 32])
def test_only_the_same_preshared_key_completes_the_handshake(responder: Responder, psk: bytes | None) -> None:
    initiator = Initiator(1, psk)
    responder.know(1, initiator.key, psk)
    for given, completes in ((psk, True), (b"\x66" * 32, False), (psk, True)):
        responder.now += SECOND
        responder.engine.set_identity(1, initiator.key.public_key().raw, given)
        assert responder.receive(initiator.initiate()) == [MESSAGE_RESPONSE]
        datagram = responder.answers[-1]
        drops = initiator.exchange.drops[DropReason.BAD_HANDSHAKE]
        initiator.exchange.consume(HandshakeDatagram(datagram, HERE, None, 0), 0)
        assert (initiator.exchange.drops[DropReason.BAD_HANDSHAKE] == drops) is completes


def test_under_load_a_cookie_is_valid_for_two_minutes(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    assert responder.receive(initiator.initiate(), queue_depth=200) == [MESSAGE_COOKIE_REPLY]
    initiator.exchange.consume(HandshakeDatagram(responder.answers[-1], HERE, None, 0), 0)
    assert responder.receive(proven := initiator.initiate(), queue_depth=200) == [MESSAGE_RESPONSE]
    other = Endpoint(HERE.host, 1001)
    responder.now += SECOND
    assert responder.receive(initiator.initiate(), endpoint=other, queue_depth=200) == [MESSAGE_COOKIE_REPLY]
    responder.now += 130 * SECOND
    assert responder.receive(initiator.initiate(), queue_depth=200) == [MESSAGE_COOKIE_REPLY]
    assert proven[0] == MESSAGE_INITIATION


def test_without_load_no_cookie_reply_is_sent(responder: Responder) -> None:
    for number in range(100):
        assert responder.receive(Initiator(number).initiate(), queue_depth=0) == []


def test_random_bytes_with_a_valid_mac1_are_refused(responder: Responder) -> None:
    for _ in range(50):
        body = (1).to_bytes(4, "little") + os.urandom(112)
        assert responder.receive(CookieGenerator(OWN.public_key()).add_macs(body, 0)) == []
    assert responder.engine.drops()[DropReason.BAD_HANDSHAKE] == 50
    assert responder.reports() == []


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_threads_answer_each_of_many_peers_exactly_once(workers: int) -> None:
    """The peers initiate in groups, so that the queue stays too short for load even if the workers are slow."""
    responder = Responder(threaded=True, workers=workers)
    initiators = [Initiator(number) for number in range(100)]
    for number, initiator in enumerate(initiators):
        responder.know(number + 1, initiator.key)
    deadline = time.monotonic() + 30
    answered: list[Answered] = []
    for first in range(0, len(initiators), 20):
        for number, initiator in enumerate(initiators[first : first + 20], first):
            message = initiator.initiate()
            for _ in range(3):
                responder.bind.arrive(message, Endpoint("192.0.2.1", 2000 + number).sockaddr)
        while len(answered) < first + 20:
            assert time.monotonic() < deadline, f"only {len(answered)} answers"
            responder.arrived.wait(0.05)
            answered += [report for report in responder.reports() if isinstance(report, Answered)]
    responder.engine.close()
    assert sorted(report.peer for report in answered) == list(range(1, 101))
    assert len({report.local_index for report in answered}) == 100
    assert sorted(int.from_bytes(each[4:8], "little") for each in responder.answers) == sorted(
        report.local_index for report in answered
    )


def test_a_closed_engine_answers_no_initiation() -> None:
    responder = Responder(threaded=True, workers=2)
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    responder.engine.close()
    responder.bind.arrive(initiator.initiate(), HERE.sockaddr)
    assert responder.answers == []
    assert not [each for each in threading.enumerate() if each.name.startswith("wyrmhole-h")]


def test_an_index_drawn_by_the_engine_is_not_used_twice(responder: Responder) -> None:
    initiator = Initiator(1)
    responder.know(1, initiator.key)
    responder.receive(initiator.initiate())
    index = int.from_bytes(responder.answers[0][4:8], "little")
    assert not responder.engine.begin_initiation(index)
    responder.engine.forget_keypairs(1)
    assert responder.engine.begin_initiation(index)
    assert not responder.engine.begin_initiation(index)
    responder.engine.end_initiation(index)
    assert responder.engine.begin_initiation(index)
