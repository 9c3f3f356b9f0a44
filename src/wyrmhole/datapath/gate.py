"""The gate: cheap checks of a handshake message before it is queued.

Each message type has a first check that costs the sender more than it costs us. Types 1 and 2 carry mac1, which
requires our public key (rule M37). Types 2 and 3 answer an initiation of ours and carry its random 32-bit index; if no
such initiation is pending, they cost one look-up. A valid mac2 proves that the sender receives at its address, so the
address is not forged. Such senders have a separate queue, limited to the rate of an honest peer.
"""

from __future__ import annotations

from enum import Enum

from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.primitives import mac, same, wipe
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.wire import messages
from wyrmhole.wire.endpoint import Endpoint, SockAddr

_NO_MAC2 = bytes(messages.MAC_SIZE)
_INDEX_OFFSETS = {
    messages.MESSAGE_RESPONSE: messages.RESPONSE_RECEIVER_OFFSET,
    messages.MESSAGE_COOKIE_REPLY: messages.RECEIVER_OFFSET,
}
_UNEXPECTED = {
    messages.MESSAGE_RESPONSE: DropReason.UNEXPECTED_RESPONSE,
    messages.MESSAGE_COOKIE_REPLY: DropReason.UNEXPECTED_COOKIE,
}


REPLIES_PER_INITIATION = {messages.MESSAGE_RESPONSE: 1, messages.MESSAGE_COOKIE_REPLY: 8}
"""The replies per initiation that go to the first queue. More than one cookie reply, because only the protocol can
recognise a forged one: otherwise an attacker who sees our initiation could keep the genuine reply out with one
message."""


class Queue(Enum):
    """The queue in which a message waits, in order of priority."""

    REPLIES = "replies"
    """The first response and the first cookie replies to a pending initiation: at most nine for each."""
    PROVEN = "proven"
    """Initiations and responses with a valid mac2."""
    OTHERS = "others"
    """All other messages with a valid mac1."""


class Gate:
    """The checks and their state. `mac1_key` is None while there is no private key."""

    __slots__ = ("_awaited", "_limiter", "_secret", "_secret_until", "mac1_key")

    def __init__(self) -> None:
        self.mac1_key: bytes | None = None
        self._awaited: dict[int, dict[int, int]] = {}
        """How many replies of each type are still accepted, by the index of each pending initiation."""
        self._secret: bytearray | None = None
        self._secret_until = 0
        self._limiter = RateLimiter()

    def begin_initiation(self, local_index: int) -> None:
        self._awaited[local_index] = dict(REPLIES_PER_INITIATION)

    def end_initiation(self, local_index: int) -> None:
        self._awaited.pop(local_index, None)

    def set_cookie_secret(self, secret: bytes | bytearray | None, until: int) -> None:
        if self._secret is not None:
            wipe(self._secret)
        self._secret, self._secret_until = None if secret is None else bytearray(secret), until

    def admit(self, kind: int, message: bytes, sockaddr: SockAddr, now: int) -> Queue | DropReason:
        """Return the queue for a message of type 1, 2 or 3 of the right length, or the reason for dropping it."""
        if self.mac1_key is None:
            return DropReason.NO_PRIVATE_KEY
        if kind != messages.MESSAGE_COOKIE_REPLY and not _has_mac1(self.mac1_key, message):
            return DropReason.BAD_MAC1
        if kind in _INDEX_OFFSETS:
            awaited = self._awaited.get(_index_of(kind, message))
            if awaited is not None and awaited[kind]:
                awaited[kind] -= 1
                return Queue.REPLIES
            if awaited is None or kind == messages.MESSAGE_COOKIE_REPLY:
                return _UNEXPECTED[kind]
        return Queue.PROVEN if self._has_proven_itself(message, sockaddr, now) else Queue.OTHERS

    def _has_proven_itself(self, message: bytes, sockaddr: SockAddr, now: int) -> bool:
        mac2 = messages.mac2_of(message)
        if self._secret is None or now > self._secret_until or mac2 == _NO_MAC2:
            return False
        endpoint = Endpoint.from_sockaddr(sockaddr)
        address = endpoint.address_bytes
        cookie = mac(self._secret, address + endpoint.port.to_bytes(2, "big"))
        return same(mac(cookie, messages.before_mac2(message)), mac2) and self._limiter.allow(address, now)

    def close(self) -> None:
        self.mac1_key = None
        self._awaited.clear()
        self.set_cookie_secret(None, 0)


def _index_of(kind: int, message: bytes) -> int:
    offset = _INDEX_OFFSETS[kind]
    return int.from_bytes(message[offset : offset + 4], "little")


def _has_mac1(key: bytes, message: bytes) -> bool:
    return same(mac(key, messages.before_mac1(message)), messages.mac1_of(message))
