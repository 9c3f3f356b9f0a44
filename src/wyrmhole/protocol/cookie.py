"""mac1, mac2 and cookies (whitepaper 5.3, 5.4.4, 5.4.7), which protect a receiver against work for unproven senders.

Every handshake message carries mac1, which proves that the sender knows our public key. Under load, a message must
also carry mac2, keyed with a cookie: a MAC of the sender's address and port under a secret of ours that changes every
two minutes. A sender without a valid cookie receives one in a cookie reply, encrypted so that only somebody who knows
our public key and sent that very message can read it.

`CookieChecker` is the receiving side of a device, `CookieGenerator` the sending side for one peer.
"""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.protocol.constants import COOKIE_LIFETIME, LABEL_COOKIE, LABEL_MAC1
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.primitives import InvalidTag, hash2s, mac, same, xopen, xseal
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import MAC_SIZE, CookieReply, before_mac1, before_mac2, mac1_of, mac2_of

_NO_MAC2 = bytes(MAC_SIZE)


def mac1_key(public: PublicKey) -> bytes:
    """Return the key of mac1 in messages to the owner of this public key."""
    return hash2s(LABEL_MAC1, public.raw)


def cookie_key(public: PublicKey) -> bytes:
    """Return the key of cookie replies from the owner of this public key."""
    return hash2s(LABEL_COOKIE, public.raw)


class CookieChecker:
    """Checks messages to us and makes cookie replies.

    `random` returns secret bytes; `now` is in boottime nanoseconds. `announce` is called with each new cookie secret
    and the last time at which it is valid.
    """

    __slots__ = ("_announce", "_cookie_key", "_random", "_secret", "_secret_birth", "mac1_key")

    def __init__(
        self,
        public: PublicKey,
        random: Callable[[int], bytes],
        announce: Callable[[bytes, int], None] = lambda secret, until: None,
    ) -> None:
        self.mac1_key = mac1_key(public)
        self._cookie_key = cookie_key(public)
        self._random = random
        self._announce = announce
        self._secret: bytes | None = None
        self._secret_birth = 0

    def mac1_is_valid(self, message: bytes) -> bool:
        return same(mac(self.mac1_key, before_mac1(message)), mac1_of(message))

    def mac2_is_valid(self, message: bytes, endpoint: Endpoint, now: int) -> bool:
        if self._secret is None or now - self._secret_birth > COOKIE_LIFETIME:
            return False
        return same(mac(self._cookie(endpoint), before_mac2(message)), mac2_of(message))

    def create_reply(self, message: bytes, sender: int, endpoint: Endpoint, now: int) -> bytes:
        """Return a cookie reply to a message that has a valid mac1 and the sender index `sender`."""
        if self._secret is None or now - self._secret_birth > COOKIE_LIFETIME:
            self._secret, self._secret_birth = self._random(32), now
            self._announce(self._secret, now + COOKIE_LIFETIME)
        nonce = self._random(24)
        sealed = xseal(self._cookie_key, nonce, self._cookie(endpoint), mac1_of(message))
        return CookieReply(sender, nonce, sealed).emit()

    def _cookie(self, endpoint: Endpoint) -> bytes:
        assert self._secret is not None
        return mac(self._secret, endpoint.address_bytes + endpoint.port.to_bytes(2, "big"))


class CookieGenerator:
    """Adds mac1 and mac2 to messages for one peer, and consumes its cookie replies."""

    __slots__ = ("_birth", "_cookie", "_last_mac1", "_public")

    def __init__(self, public: PublicKey) -> None:
        self._public = public
        self._cookie: bytes | None = None
        self._birth = 0
        self._last_mac1: bytes | None = None

    def add_macs(self, unauthenticated: bytes, now: int) -> bytes:
        """Append the two MACs to the message. Without a fresh cookie, mac2 is zero."""
        mac1 = mac(mac1_key(self._public), unauthenticated)
        self._last_mac1 = mac1
        message = unauthenticated + mac1
        if self._cookie is not None and now - self._birth > COOKIE_LIFETIME:
            self._cookie = None
        return message + (_NO_MAC2 if self._cookie is None else mac(self._cookie, message))

    def consume_reply(self, reply: CookieReply, now: int) -> bytes | None:
        """Keep and return the cookie if the reply answers the last message sent, otherwise return None.

        The message is not sent again: that waits for the timer (6.6). The endpoint does not change, because a cookie
        reply proves nothing about its source. One message earns one cookie.
        """
        if self._last_mac1 is None:
            return None
        try:
            cookie = xopen(cookie_key(self._public), reply.nonce, reply.encrypted_cookie, self._last_mac1)
        except InvalidTag:
            return None
        self._cookie, self._birth, self._last_mac1 = cookie, now, None
        return cookie
