"""mac1, mac2 and cookie replies (whitepaper 5.4.4, 5.4.7)."""

from __future__ import annotations

import random

from wyrmhole.protocol.constants import COOKIE_LIFETIME
from wyrmhole.protocol.cookie import CookieChecker, CookieGenerator, cookie_key, mac1_key
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.primitives import hash2s
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import INITIATION_SIZE, CookieReply

PUBLIC = PrivateKey(b"\x07" * 32).public_key()
HERE = Endpoint("192.0.2.1", 1000)
BODY = (1).to_bytes(4, "little") + bytes(range(112))


def pair() -> tuple[CookieChecker, CookieGenerator]:
    return CookieChecker(PUBLIC, random.Random(1).randbytes), CookieGenerator(PUBLIC)


def with_cookie(checker: CookieChecker, generator: CookieGenerator, now: int = 0) -> None:
    message = generator.add_macs(BODY, now)
    reply = CookieReply.parse(checker.create_reply(message, 9, HERE, now))
    assert reply.receiver == 9
    assert generator.consume_reply(reply, now)


def test_mac1_and_cookie_labels_match_the_whitepaper() -> None:
    """Both keys are derived with the whitepaper's labels (M3)."""
    assert mac1_key(PUBLIC) == hash2s(b"mac1----" + PUBLIC.raw)
    assert cookie_key(PUBLIC) == hash2s(b"cookie--" + PUBLIC.raw)


def test_mac1_is_valid_only_for_its_receiver() -> None:
    """The key of mac1 is derived from the receiver's public key (M37)."""
    checker, generator = pair()
    message = generator.add_macs(BODY, 0)
    assert len(message) == INITIATION_SIZE
    assert checker.mac1_is_valid(message)
    assert not CookieChecker(PublicKey(b"\x01" * 32), random.randbytes).mac1_is_valid(message)
    for at in (0, 50, 115, 116, 131):
        broken = bytearray(message)
        broken[at] ^= 1
        assert not checker.mac1_is_valid(bytes(broken))


def test_mac2_is_zero_without_a_cookie_and_valid_with_one() -> None:
    """mac2 is the MAC of the message under the latest cookie, or zero (M43)."""
    checker, generator = pair()
    message = generator.add_macs(BODY, 0)
    assert message[-16:] == bytes(16)
    assert not checker.mac2_is_valid(message, HERE, 0)
    with_cookie(checker, generator)
    assert checker.mac2_is_valid(generator.add_macs(BODY, 1), HERE, 1)


def test_a_cookie_is_bound_to_address_and_port() -> None:
    """A message with the cookie from another address or port is refused (M39)."""
    checker, generator = pair()
    with_cookie(checker, generator)
    message = generator.add_macs(BODY, 1)
    assert not checker.mac2_is_valid(message, Endpoint(HERE.host, HERE.port + 1), 1)
    assert not checker.mac2_is_valid(message, Endpoint("192.0.2.2", HERE.port), 1)


def test_a_cookie_reply_to_an_older_message_is_refused() -> None:
    """The reply's associated data is the mac1 of the message that it answers (M40)."""
    checker, generator = pair()
    old = generator.add_macs(BODY, 0)
    generator.add_macs(BODY + b"", 0)
    reply = CookieReply.parse(checker.create_reply(old, 9, HERE, 0))
    assert generator.consume_reply(reply, 0)
    generator.add_macs(BODY[:-1] + b"x", 0)
    assert not generator.consume_reply(reply, 0)


def test_a_cookie_reply_is_accepted_once_per_message() -> None:
    checker, generator = pair()
    message = generator.add_macs(BODY, 0)
    reply = CookieReply.parse(checker.create_reply(message, 9, HERE, 0))
    assert not CookieGenerator(PUBLIC).consume_reply(reply, 0)
    assert generator.consume_reply(reply, 0)
    assert not generator.consume_reply(reply, 0)


def test_cookies_and_secrets_last_120_seconds() -> None:
    """Afterwards, neither side uses the cookie or its secret (M39, M41, I22)."""
    checker, generator = pair()
    with_cookie(checker, generator)
    late = COOKIE_LIFETIME + 1
    assert checker.mac2_is_valid(generator.add_macs(BODY, COOKIE_LIFETIME), HERE, COOKIE_LIFETIME)
    assert generator.add_macs(BODY, late)[-16:] == bytes(16)
    message = CookieGenerator(PUBLIC).add_macs(BODY, 0)
    first = checker.create_reply(message, 9, HERE, late)
    second = checker.create_reply(message, 9, HERE, late)
    assert first != second, "the nonce is random"


def test_a_cookie_reply_is_less_than_half_its_request() -> None:
    """Cookie replies cannot be used for amplification."""
    checker, generator = pair()
    message = generator.add_macs(BODY, 0)
    assert len(checker.create_reply(message, 9, HERE, 0)) * 2 < len(message)
