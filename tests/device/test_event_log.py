"""Log lines of events: wireguard-go's wording, causes of refusals, and rate classes for lines that others trigger."""

from __future__ import annotations

import logging

import pytest

from wyrmhole.device.event_log import MESSAGES, REFUSALS, LogLine, describe, peer_text
from wyrmhole.protocol import events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

KEY = PublicKey(bytes(range(32)))
HERE, THERE = Endpoint("192.0.2.1", 51820), Endpoint("2001:db8::2", 51820)


def texts(event: events.Event) -> list[str]:
    return [line.text for line in describe(event)]


def test_a_peer_is_named_like_in_wireguard_go() -> None:
    text = KEY.base64()
    assert peer_text(KEY) == f"peer({text[0:4]}…{text[39:43]})"


def test_a_first_initiation_logs_one_line_and_a_retry_two() -> None:
    assert texts(events.InitiationSent(KEY, HERE, 1)) == [
        f"{peer_text(KEY)} - Sending handshake initiation to 192.0.2.1:51820"
    ]
    assert texts(events.InitiationSent(KEY, HERE, 2)) == [
        f"{peer_text(KEY)} - Handshake did not complete after 5 seconds, retrying (try 2)",
        f"{peer_text(KEY)} - Sending handshake initiation to 192.0.2.1:51820",
    ]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (events.HandshakeCompleted(KEY, as_initiator=True), ["Received handshake response", "keypair created"]),
        (events.HandshakeCompleted(KEY, as_initiator=False), ["first packet of the session", "keypair created"]),
        (events.HandshakeGaveUp(KEY, 20), ["did not complete after 20 attempts, giving up"]),
        (events.HandshakeImpossible(KEY, "the peer has no endpoint"), ["Cannot send", "the peer has no endpoint"]),
        (events.CookieReceived(KEY), ["Received cookie response"]),
        (events.KeepaliveSent(KEY, persistent=False), ["Sending keepalive packet"]),
        (events.KeepaliveSent(KEY, persistent=True), ["Sending persistent keepalive packet"]),
        (events.Roamed(KEY, THERE), ["[2001:db8::2]:51820"]),
        (events.SessionExpired(KEY), ["Removing all keys, since we haven't received a new one in 540 seconds"]),
        (events.PeerSilent(KEY, HERE, 3), ["at 192.0.2.1:51820 does not answer", "3 handshake initiations", "keys"]),
        (events.PeerSilent(KEY, HERE, 0), ["has not answered for 15 s within a session", "192.0.2.1:51820"]),
        (events.PeerBack(KEY, 65 * SECOND), ["is back after 65 s"]),
        (events.EndpointFlapping(KEY, (HERE, THERE)), ["192.0.2.1:51820 and [2001:db8::2]:51820", "private key"]),
    ],
)
def test_an_event_of_a_peer_is_one_line_with_its_name(event: events.Event, words: list[str]) -> None:
    (text,) = texts(event)
    assert text.startswith(peer_text(KEY))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (DropReason.UNKNOWN_PEER, ["initiation message", KEY.base64(), "add it"]),
        (DropReason.BAD_HANDSHAKE, ["preshared keys differ"]),
        (DropReason.REPLAYED_HANDSHAKE, ["clock went back"]),
        (DropReason.BAD_MAC1, ["Received packet with invalid mac1", "another PublicKey for us"]),
        (DropReason.UNKNOWN_TYPE, ["Received message with unknown type"]),
        (DropReason.UNEXPECTED_COOKIE, ["cookie reply", "no initiation of ours is pending"]),
        (DropReason.NO_PRIVATE_KEY, ["no private key"]),
        (DropReason.UNEXPECTED_RESPONSE, ["response message"]),
        (DropReason.BAD_COOKIE, ["cookie reply"]),
    ],
)
def test_a_refusal_names_source_and_cause(reason: DropReason, words: list[str]) -> None:
    (line,) = describe(events.HandshakeRefused(reason, HERE, KEY))
    assert "from 192.0.2.1:51820" in line.text and line.level == logging.DEBUG
    assert all(word in line.text for word in words), line.text


@pytest.mark.parametrize(("inner", "version"), [("10.9.0.1", "IPv4"), ("fd00::9", "IPv6")])
def test_a_disallowed_source_names_peer_endpoint_and_inner_address(inner: str, version: str) -> None:
    (line,) = describe(events.PacketRefused(KEY, HERE, inner))
    begin = f"{version} packet with disallowed source address from {peer_text(KEY)} at 192.0.2.1:51820: {inner}"
    assert line.text.startswith(begin) and line.level == logging.DEBUG and line.rate_class == "refused 192.0.2.1"


def test_an_answered_initiation_logs_two_lines() -> None:
    assert texts(events.ResponseSent(KEY, HERE)) == [
        f"{peer_text(KEY)} - Received handshake initiation",
        f"{peer_text(KEY)} - Sending handshake response to 192.0.2.1:51820",
    ]


def test_each_reason_of_a_refusal_has_an_explanation() -> None:
    for reason in (*REFUSALS, *MESSAGES):
        assert "{" not in describe(events.HandshakeRefused(reason, HERE))[0].text


def test_a_missing_route_explains_a_silent_peer() -> None:
    (line,) = describe(events.PeerSilent(KEY, HERE, 3), "this host has no IPv4 route to 192.0.2.1")
    assert line.text.endswith("at 192.0.2.1:51820 cannot be reached: this host has no IPv4 route to 192.0.2.1")


def test_an_invalid_response_is_logged_as_a_response() -> None:
    (line,) = describe(events.HandshakeRefused(DropReason.BAD_HANDSHAKE, HERE, KEY))
    assert line.text.startswith("Received invalid response message from 192.0.2.1:51820")
    (line,) = describe(events.HandshakeRefused(DropReason.BAD_HANDSHAKE, HERE))
    assert line.text.startswith("Received invalid initiation message from 192.0.2.1:51820")


def test_a_refusal_without_an_authenticated_sender_names_no_peer() -> None:
    (line,) = describe(events.HandshakeRefused(DropReason.BAD_HANDSHAKE, HERE))
    assert "the sender does not authenticate" in line.text


def test_refusals_are_rate_limited_per_source_address() -> None:
    classes = {
        describe(events.HandshakeRefused(DropReason.UNKNOWN_PEER, Endpoint("192.0.2.1", port), KEY))[0].rate_class
        for port in range(1, 100)
    }
    assert classes == {"refused 192.0.2.1"}


def test_only_silence_return_and_flapping_are_warnings() -> None:
    warnings: list[events.Event] = [
        events.PeerSilent(KEY, None, 3),
        events.PeerBack(KEY, SECOND),
        events.EndpointFlapping(KEY, (HERE, THERE)),
    ]
    assert all(line.level == logging.WARNING for event in warnings for line in describe(event))
    assert describe(events.HandshakeGaveUp(KEY, 20))[0].level == logging.DEBUG


def test_log_lines_compare_by_value() -> None:
    assert describe(events.CookieReceived(KEY)) == describe(events.CookieReceived(KEY))
    assert isinstance(describe(events.CookieReceived(KEY))[0], LogLine)
