"""Handshakes said by hand to a living daemon: what it must not answer, and what it must not forget."""

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
"""Rekey-Timeout is 0.2 s there."""

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
]
"""The points whose shared secret with anybody is zero (RFC 7748 section 6.1; the list of curve25519's author)."""


@pytest.fixture
def answering(lab: Lab) -> Iterator[tuple[Node, RawPeer]]:
    """A node that waits, and a raw peer that begins."""
    node, raw = lonely_node(lab, SUBJECT)
    with raw:
        yield node, raw


@pytest.fixture
def asking(lab: Lab) -> Iterator[tuple[Node, RawPeer]]:
    """A node that begins at once (it keeps a persistent keepalive) and is impatient, and a raw peer that answers."""
    node, raw = lonely_node(lab, SHORT, knows_endpoint=True, keepalive=60)
    with raw:
        yield node, raw


def bent(message: bytes) -> list[bytes]:
    """The message one byte shorter and longer, and with each of its reserved bits set."""
    reserved = [message[:at] + bytes([1 << bit]) + message[at + 1 :] for at in (1, 2, 3) for bit in range(8)]
    return [message[:-1], message + b"\0", *reserved]


def spoilt(message: bytes, at: int) -> bytes:
    """With one bit of that byte flipped."""
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


# Message 1


def test_an_initiation_that_is_not_exactly_right_is_met_by_silence(answering: tuple[Node, RawPeer]) -> None:
    """Its length, its reserved bits, and every byte that mac1 covers (M4, M8, M37)."""
    _, raw = answering
    message, _ = raw.initiation()
    raw.stays_unanswered(*bent(message), *(spoilt(message, at) for at in range(132)))


def test_valid_macs_do_not_make_a_message(answering: tuple[Node, RawPeer]) -> None:
    """Random fields behind a right mac1, low-order ephemeral keys, a stranger's key."""
    node, raw = answering
    message, _ = raw.initiation()
    random = [raw.with_macs(message[:8] + os.urandom(108) + bytes(32)) for _ in range(20)]
    low = [raw.with_macs(message[:8] + point + message[40:]) for point in LOW_ORDER]
    with RawPeer(raw.host, ("192.0.2.2", 40001), node.key.public, raw.target) as stranger:
        stranger.send(stranger.initiation()[0])
        raw.stays_unanswered(*random, *low)
        assert stranger.waiting() == []


def test_a_replayed_initiation_changes_nothing(answering: tuple[Node, RawPeer]) -> None:
    """No reply, and the endpoint stays where it is (M13)."""
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
    """An initiation needs a later timestamp than the last that was accepted (M13)."""
    _, raw = answering
    older, _ = raw.initiation()
    raw.begin()
    raw.stays_unanswered(older)


def test_a_timestamp_counts_only_after_it_was_authenticated(answering: tuple[Node, RawPeer]) -> None:
    """A message with a spoilt timestamp leaves no trace, and the true one with the same is answered (M14)."""
    _, raw = answering
    message, sent = raw.initiation()
    raw.send(raw.with_macs(spoilt(message, 90)), raw.with_macs(spoilt(message, 115)), message)
    raw.finish(sent, raw.receive(2))


def test_every_response_has_fresh_keys_and_indices(answering: tuple[Node, RawPeer]) -> None:
    """Nothing of one handshake is used in another (M9, M10)."""
    _, raw = answering
    seen: list[tuple[bytes, bytes]] = []
    while len(seen) < 20:
        message, sent = raw.initiation()
        raw.send(message)
        for answer in raw.waiting(wait=0.1):
            raw.finish(sent, answer)
            seen.append((answer[4:8], answer[12:44]))
    assert len({index for index, _ in seen}) == len({ephemeral for _, ephemeral in seen}) == len(seen)


def test_fuzz_is_met_by_silence_and_costs_no_memory(answering: tuple[Node, RawPeer]) -> None:
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


# Message 2


def test_a_response_that_is_not_exactly_right_completes_nothing(asking: tuple[Node, RawPeer]) -> None:
    """The genuine response to the same initiation still completes the handshake (M5, M8)."""
    node, raw = asking
    message, session = raw.respond(raw.receive(1))
    raw.send(*bent(message), *(spoilt(message, at) for at in range(76)))
    raw.send(*(raw.with_macs(spoilt(message, at)) for at in (9, 20, 50, 70)))
    raw.send(message)
    assert session.open(raw.receive(4, wait=2)) == b""
    assert node.latest_handshake(raw.key.public)


def test_a_first_message_follows_the_response_at_once(asking: tuple[Node, RawPeer]) -> None:
    """An empty one if there is nothing to say, with counter 0 (M19, M20)."""
    _, raw = asking
    answer, session = raw.respond(raw.receive(1))
    raw.send(answer)
    message = raw.receive(4, wait=2)
    assert len(message) == 32 and message[8:16] == bytes(8)
    assert session.open(message) == b""


def test_of_two_responses_the_first_counts(asking: tuple[Node, RawPeer]) -> None:
    _, raw = asking
    question = raw.receive(1)
    answers = [raw.respond(question) for _ in range(2)]
    raw.send(answers[0][0], answers[1][0], answers[0][0])
    assert answers[0][1].open(raw.receive(4, wait=2)) == b""
    raw.send(answers[1][1].seal(b""))
    assert [message for message in raw.waiting(wait=0.3) if message[0] == 4] == []


def test_a_response_with_a_zero_secret_is_refused(asking: tuple[Node, RawPeer]) -> None:
    """The check is on the initiator's side too (M16)."""
    _, raw = asking
    question = raw.receive(1)
    answer, session = raw.respond(question)
    raw.send(*(raw.with_macs(answer[:12] + point + answer[44:]) for point in LOW_ORDER), answer)
    assert session.open(raw.receive(4, wait=2)) == b""


def test_attempts_have_fresh_keys_and_indices_and_keep_their_distance(asking: tuple[Node, RawPeer]) -> None:
    """Ten attempts, never two within Rekey-Timeout, however much data is waiting (M9, M10, M30, M43)."""
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
    """Seven such peers with keepalive; the eighth, a sound one, shows that all had their turn (M16)."""
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
        until(lambda: len(wire.of(1)) >= 2, "the sound peer got two initiations")
        assert {datagram.destination_port for datagram in wire.datagrams} == {41000 + len(LOW_ORDER)}


# Cookies


def test_a_cookie_is_kept_for_the_next_attempt_and_does_nothing_else(asking: tuple[Node, RawPeer]) -> None:
    """No attempt comes of it, the endpoint stays, wrong ones are ignored (M6, M41, M42)."""
    node, raw = asking
    question = raw.receive(1)
    reply = raw.cookie_reply(question)
    raw.host.address("eth0", "192.0.2.66/24")
    with RawPeer(raw.host, ("192.0.2.66", 1), node.key.public, raw.target) as elsewhere:
        wrong = raw.cookie_reply(spoilt(question, 120), b"\x22" * 16)
        elsewhere.send(reply[:-1], reply + b"\0", spoilt(reply, 2), spoilt(reply, 40), wrong, reply)
    again = raw.receive(1)
    assert raw.carries_cookie(again, b"\x11" * 16)
    assert node.show_of(raw.key.public, "endpoints") == ["192.0.2.2:40000"]


def test_a_cookie_for_an_older_attempt_is_refused(asking: tuple[Node, RawPeer]) -> None:
    """A cookie reply counts for the message that caused it (M40, I22)."""
    _, raw = asking
    first = raw.receive(1)
    raw.receive(1)
    raw.send(raw.cookie_reply(first))
    assert raw.receive(1)[132:] == bytes(16)


def test_under_load_only_a_cookie_for_this_address_and_port_helps(answering: tuple[Node, RawPeer]) -> None:
    """Under a flood of messages with a valid mac1 (M38, M39). Cookie replies are 64 bytes, so they amplify nothing.

    The flood has an address of its own, and who asks was silent for longer than `protocol.quiet_sources` remembers.
    """
    node, raw = answering
    raw.host.address("eth0", "192.0.2.3/24")
    message, _ = raw.initiation()
    flood = [raw.with_macs(message[:8] + os.urandom(108) + bytes(32)) for _ in range(700)]
    with RawPeer(raw.host, ("192.0.2.3", 40009), node.key.public, raw.target) as noisy:

        def ask(question: bytes, kind: int) -> bytes | None:
            """The answer of that type to a question at the end of a flood."""
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
        until(lambda: answered_with(cookie), "a proven initiation is answered under load")
        raw.move(("192.0.2.2", 40001))
        elsewhere, _ = raw.initiation(cookie=cookie)
        until(lambda: ask(elsewhere, 3), "from another port another cookie is needed")
