"""Hand-made handshake messages to a running daemon: which it must not answer, and what it must remember."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator

import pytest

from tests.netns.host import resident_kib, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import Key, Node, peer_section
from tests.netns.raw_peer import FLOOR_SECONDS, RawPeer, lonely_node
from tests.netns.traffic import Capture

pytestmark = pytest.mark.network

SHORT = "wyrmhole-short"
"""An implementation with a Rekey-Timeout of 0.2 s."""

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
]
"""Points whose shared secret with any key is zero (RFC 7748, section 6.1; the list of curve25519's author)."""


@pytest.fixture
def answering(lab: Lab) -> Iterator[tuple[Node, RawPeer]]:
    """A node that responds, and a raw peer that initiates."""
    node, raw = lonely_node(lab, SUBJECT)
    with raw:
        yield node, raw


@pytest.fixture
def asking(lab: Lab) -> Iterator[tuple[Node, RawPeer]]:
    """A node that initiates at once, for its persistent keepalive, with short timings, and a raw peer that responds."""
    node, raw = lonely_node(lab, SHORT, knows_endpoint=True, keepalive=60)
    with raw:
        yield node, raw


def malformed(message: bytes) -> list[bytes]:
    """Return the message one byte shorter, one byte longer, and with each of its reserved bits set."""
    reserved = [message[:at] + bytes([1 << bit]) + message[at + 1 :] for at in (1, 2, 3) for bit in range(8)]
    return [message[:-1], message + b"\0", *reserved]


def with_flipped_bit(message: bytes, at: int) -> bytes:
    """Return the message with one bit of the byte at `at` flipped."""
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


# Initiations


def test_an_invalid_initiation_is_not_answered(answering: tuple[Node, RawPeer]) -> None:
    """The length, a reserved bit, or a byte that mac1 covers is wrong (M4, M8, M37)."""
    _, raw = answering
    message, _ = raw.initiation()
    raw.stays_unanswered(*malformed(message), *(with_flipped_bit(message, at) for at in range(132)))


def test_an_invalid_initiation_with_valid_macs_is_not_answered(answering: tuple[Node, RawPeer]) -> None:
    """It has random fields, a low-order ephemeral key, or the static key of an unknown peer."""
    node, raw = answering
    message, _ = raw.initiation()
    random = [raw.with_macs(message[:8] + os.urandom(108) + bytes(32)) for _ in range(20)]
    low = [raw.with_macs(message[:8] + point + message[40:]) for point in LOW_ORDER]
    with RawPeer(raw.host, ("192.0.2.2", 40001), node.key.public, raw.target) as stranger:
        stranger.send(stranger.initiation()[0])
        raw.stays_unanswered(*random, *low)
        assert stranger.waiting() == []


def test_a_replayed_initiation_changes_nothing(answering: tuple[Node, RawPeer]) -> None:
    """There is no reply, and the endpoint does not move (M13)."""
    node, raw = answering
    message, sent = raw.initiation()
    raw.send(message)
    session = raw.finish(sent, raw.receive(2))
    raw.send(session.seal())
    raw.host.address("eth0", "192.0.2.66/24")
    with RawPeer(raw.host, ("192.0.2.66", 40000), node.key.public, raw.target) as thief:
        thief.waiting(wait=FLOOR_SECONDS)
        thief.send(message, message)
        raw.stays_unanswered(message)
        assert thief.waiting() == []
    assert node.show_of(raw.key.public, "endpoints") == ["192.0.2.2:40000"]


def test_an_older_timestamp_is_refused(answering: tuple[Node, RawPeer]) -> None:
    """An initiation needs a later timestamp than the last accepted one (M13)."""
    _, raw = answering
    older, _ = raw.initiation()
    raw.begin()
    raw.stays_unanswered(older)


def test_a_timestamp_counts_only_after_authentication(answering: tuple[Node, RawPeer]) -> None:
    """A message with a corrupt timestamp has no effect; the genuine one with the same timestamp is answered (M14)."""
    _, raw = answering
    message, sent = raw.initiation()
    raw.send(raw.with_macs(with_flipped_bit(message, 90)), raw.with_macs(with_flipped_bit(message, 115)), message)
    raw.finish(sent, raw.receive(2))


def test_every_response_has_fresh_keys_and_indices(answering: tuple[Node, RawPeer]) -> None:
    """No key or index is used in two handshakes (M9, M10)."""
    _, raw = answering
    seen: list[tuple[bytes, bytes]] = []
    while len(seen) < 20:
        message, sent = raw.initiation()
        raw.send(message)
        for answer in raw.waiting(wait=0.1):
            raw.finish(sent, answer)
            seen.append((answer[4:8], answer[12:44]))
    assert len({index for index, _ in seen}) == len({ephemeral for _, ephemeral in seen}) == len(seen)


def test_random_datagrams_are_not_answered_and_cost_no_memory(answering: tuple[Node, RawPeer]) -> None:
    """60,000 datagrams of every length and type (M50)."""
    node, raw = answering
    before = 0
    for round_ in range(6):
        for number in range(10_000):
            kind = number % 7
            size = number % 200 if number % 50 else (1500, 9000, 65_507)[number // 50 % 3]
            raw.send((bytes((kind, 0, 0, 0)) + os.urandom(min(size, 180)).ljust(size, b"\0"))[:size])
        raw.stays_unanswered()
        if round_ == 1:
            before = resident_kib(node.process.pid)
    assert resident_kib(node.process.pid) - before < 4096


# Responses


def test_an_invalid_response_is_ignored(asking: tuple[Node, RawPeer]) -> None:
    """The genuine response to the same initiation still completes the handshake (M5, M8)."""
    node, raw = asking
    message, session = raw.respond(raw.receive(1))
    raw.send(*malformed(message), *(with_flipped_bit(message, at) for at in range(76)))
    raw.send(*(raw.with_macs(with_flipped_bit(message, at)) for at in (9, 20, 50, 70)))
    raw.send(message)
    assert session.open(raw.receive(4, wait=2)) == b""
    assert node.latest_handshake(raw.key.public)


def test_a_first_message_immediately_follows_the_response(asking: tuple[Node, RawPeer]) -> None:
    """It has counter 0, and is empty if there is no data (M19, M20)."""
    _, raw = asking
    answer, session = raw.respond(raw.receive(1))
    raw.send(answer)
    message = raw.receive(4, wait=2)
    assert len(message) == 32 and message[8:16] == bytes(8)
    assert session.open(message) == b""


def test_the_first_of_two_responses_is_used(asking: tuple[Node, RawPeer]) -> None:
    _, raw = asking
    question = raw.receive(1)
    answers = [raw.respond(question) for _ in range(2)]
    raw.send(answers[0][0], answers[1][0], answers[0][0])
    assert answers[0][1].open(raw.receive(4, wait=2)) == b""
    raw.send(answers[1][1].seal(b""))
    assert [message for message in raw.waiting(wait=0.3) if message[0] == 4] == []


def test_a_response_with_a_zero_secret_is_refused(asking: tuple[Node, RawPeer]) -> None:
    """The initiator checks for it too (M16)."""
    _, raw = asking
    question = raw.receive(1)
    answer, session = raw.respond(question)
    raw.send(*(raw.with_macs(answer[:12] + point + answer[44:]) for point in LOW_ORDER), answer)
    assert session.open(raw.receive(4, wait=2)) == b""


def test_attempts_have_fresh_keys_and_are_spaced(asking: tuple[Node, RawPeer]) -> None:
    """Of ten attempts, no two are within Rekey-Timeout, however much data is staged (M9, M10, M30, M43)."""
    node, raw = asking
    times: list[float] = []
    seen: list[bytes] = []
    with node.host.pinging("10.77.0.2", interval=0.002):
        while len(seen) < 10:
            seen.append(raw.receive(1))
            times.append(time.monotonic())
    assert len({message[4:8] for message in seen}) == len({message[8:40] for message in seen}) == len(seen)
    assert {message[132:] for message in seen} == {bytes(16)}
    assert times[-1] - times[0] > 0.95 * 9 * 0.2


def test_no_packet_goes_to_a_key_of_low_order(lab: Lab) -> None:
    """Seven such peers have keepalives; the initiations to an eighth, valid peer show that all were due (M16)."""
    a, b = lab.neighbours()
    node, sound = lab.node(a, SUBJECT), Key.generate()
    keys = [*(base64.b64encode(point).decode() for point in LOW_ORDER), sound.public]
    with Capture(b, "eth0") as wire:
        sections = [
            peer_section(key, f"10.78.0.{at}/32", endpoint=f"192.0.2.2:{41000 + at}", keepalive=1)
            for at, key in enumerate(keys)
        ]
        node.configure(*sections)
        node.up()
        until(lambda: len(wire.of(1)) >= 2, "the valid peer receives two initiations")
        assert {datagram.destination_port for datagram in wire.datagrams} == {41000 + len(LOW_ORDER)}


# Cookies


def test_a_cookie_is_used_only_for_the_next_attempt(asking: tuple[Node, RawPeer]) -> None:
    """It neither triggers an attempt nor moves the endpoint, and invalid ones are ignored (M6, M41, M42)."""
    node, raw = asking
    question = raw.receive(1)
    reply = raw.cookie_reply(question)
    raw.host.address("eth0", "192.0.2.66/24")
    with RawPeer(raw.host, ("192.0.2.66", 1), node.key.public, raw.target) as elsewhere:
        wrong = raw.cookie_reply(with_flipped_bit(question, 120), b"\x22" * 16)
        elsewhere.send(reply[:-1], reply + b"\0", with_flipped_bit(reply, 2), with_flipped_bit(reply, 40), wrong, reply)
    again = raw.receive(1)
    assert raw.carries_cookie(again, b"\x11" * 16)
    assert node.show_of(raw.key.public, "endpoints") == ["192.0.2.2:40000"]


def test_a_cookie_for_an_older_attempt_is_refused(asking: tuple[Node, RawPeer]) -> None:
    """A cookie reply applies only to the message that it answers (M40, I22)."""
    _, raw = asking
    first = raw.receive(1)
    raw.receive(1)
    raw.send(raw.cookie_reply(first))
    assert raw.receive(1)[132:] == bytes(16)


def test_under_load_a_cookie_must_match_address_and_port(answering: tuple[Node, RawPeer]) -> None:
    """The flood has a valid mac1 (M38, M39). Cookie replies have 64 bytes, so they cannot be used for amplification.

    The flood has its own address, and the initiator was silent for longer than `quiet_sources` remembers.
    """
    node, raw = answering
    raw.host.address("eth0", "192.0.2.3/24")
    message, _ = raw.initiation()
    flood = [raw.with_macs(message[:8] + os.urandom(108) + bytes(32)) for _ in range(700)]
    with RawPeer(raw.host, ("192.0.2.3", 40009), node.key.public, raw.target) as noisy:

        def ask(question: bytes, kind: int) -> bytes | None:
            """Return the answer of that type to a message sent at the end of a flood."""
            noisy.waiting()
            raw.waiting()
            noisy.send(*flood)
            raw.send(question)
            return next((answer for answer in raw.waiting(wait=5) if answer[0] == kind), None)

        def answered_with(cookie: bytes) -> bool:
            question, sent = raw.initiation(cookie=cookie)
            answer = ask(question, 2)
            return answer is not None and bool(raw.finish(sent, answer))

        question, _ = raw.initiation()
        cookie = raw.read_cookie(until(lambda: ask(question, 3), "a cookie") or b"", question)
        assert {(answer[0], len(answer)) for answer in noisy.waiting()} == {(3, 64)}
        until(lambda: answered_with(cookie), "an initiation with the cookie is answered under load")
        raw.move(("192.0.2.2", 40001))
        elsewhere, _ = raw.initiation(cookie=cookie)
        until(lambda: ask(elsewhere, 3), "the cookie is refused from another port")
