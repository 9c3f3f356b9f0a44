"""The four messages: layout, parse, emit (whitepaper 5.4). All integers are little endian.

The type word is the type byte and three reserved zero bytes. Reading it as a 32-bit integer checks both, like the
kernel and wireguard-go.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Self

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, UDP_HEADER_SIZE

MESSAGE_INITIATION = 1
MESSAGE_RESPONSE = 2
MESSAGE_COOKIE_REPLY = 3
MESSAGE_TRANSPORT = 4

INITIATION_SIZE = 148
RESPONSE_SIZE = 92
COOKIE_REPLY_SIZE = 64
TRANSPORT_HEADER_SIZE = 16
TAG_SIZE = 16
MAC_SIZE = 16
TRANSPORT_OVERHEAD = TRANSPORT_HEADER_SIZE + TAG_SIZE
"""The bytes that a transport data message adds to its packet, and the size of a keepalive, which has none."""
OVERHEAD_V4 = IPV4_HEADER_SIZE + UDP_HEADER_SIZE + TRANSPORT_OVERHEAD
OVERHEAD_V6 = IPV6_HEADER_SIZE + UDP_HEADER_SIZE + TRANSPORT_OVERHEAD
"""The bytes that the tunnel adds to a packet, including the outer headers."""
USUAL_OUTER_MTU = 1500
DEFAULT_MTU = USUAL_OUTER_MTU - OVERHEAD_V6
"""1420, like the kernel: an outer packet of either family then fits the usual link."""

TYPE_SIZE = 4
SENDER_OFFSET = 4
"""Offset of the sender's index in messages of types 1 and 2."""
RECEIVER_OFFSET = 4
"""Offset of the receiver's index in messages of types 3 and 4."""
RESPONSE_RECEIVER_OFFSET = 8

TRANSPORT_HEADER = struct.Struct("<IIQ")
"""Type, receiver index, counter."""

_INITIATION = struct.Struct("<II32s48s28s16s16s")
_RESPONSE = struct.Struct("<III32s16s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")
HANDSHAKE_SIZES = {
    MESSAGE_INITIATION: INITIATION_SIZE,
    MESSAGE_RESPONSE: RESPONSE_SIZE,
    MESSAGE_COOKIE_REPLY: COOKIE_REPLY_SIZE,
}


class MessageError(ValueError):
    """The bytes are not a valid message of the expected type."""


class TooShort(MessageError):
    """The bytes are shorter than a type word."""


class UnknownType(MessageError):
    """The message type is unknown or unexpected, or a reserved byte is not zero."""


class WrongLength(MessageError):
    """The type is known, but its messages have another size."""


def classify(data: Buffer) -> int:
    """Return the message type after checking type word and length. Raises TooShort, UnknownType or WrongLength."""
    if len(data) < TYPE_SIZE:
        raise TooShort("a message must have at least a type word")
    kind = int.from_bytes(data[:TYPE_SIZE], "little")
    if kind == MESSAGE_TRANSPORT:
        if len(data) < TRANSPORT_OVERHEAD:
            raise WrongLength("a transport data message must have at least a header and a tag")
        return kind
    size = HANDSHAKE_SIZES.get(kind)
    if size is None:
        raise UnknownType("unknown message type, or reserved bytes that are not zero")
    if len(data) != size:
        raise WrongLength(f"a message of type {kind} must have {size} bytes")
    return kind


def _fields(layout: struct.Struct, kind: int, data: Buffer) -> tuple[Any, ...]:
    if classify(data) != kind:
        raise UnknownType(f"not a message of type {kind}")
    return layout.unpack(data)[1:]


def _emit(layout: struct.Struct, kind: int, *fields: int | bytes) -> bytes:
    """Pack the fields, then unpack and compare, because `struct` silently pads and truncates bytes."""
    try:
        data = layout.pack(kind, *fields)
    except struct.error as error:
        raise MessageError(f"a field does not fit a message of type {kind}: {error}") from None
    if layout.unpack(data)[1:] != fields:
        raise MessageError(f"a field of a message of type {kind} has a wrong size")
    return data


@dataclass(frozen=True, slots=True)
class Initiation:
    """The first message of a handshake (whitepaper 5.4.2)."""

    sender: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes
    mac2: bytes

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Parse 148 bytes of type 1. Raises MessageError."""
        return cls(*_fields(_INITIATION, MESSAGE_INITIATION, data))

    def emit(self) -> bytes:
        """Return the message of 148 bytes. Raises MessageError if a field has a wrong size."""
        return _emit(
            _INITIATION,
            MESSAGE_INITIATION,
            self.sender,
            self.ephemeral,
            self.encrypted_static,
            self.encrypted_timestamp,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """The second message of a handshake (whitepaper 5.4.3)."""

    sender: int
    receiver: int
    ephemeral: bytes
    encrypted_nothing: bytes
    mac1: bytes
    mac2: bytes

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Parse 92 bytes of type 2. Raises MessageError."""
        return cls(*_fields(_RESPONSE, MESSAGE_RESPONSE, data))

    def emit(self) -> bytes:
        """Return the message of 92 bytes. Raises MessageError if a field has a wrong size."""
        return _emit(
            _RESPONSE,
            MESSAGE_RESPONSE,
            self.sender,
            self.receiver,
            self.ephemeral,
            self.encrypted_nothing,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class CookieReply:
    """The cookie reply of a receiver under load (whitepaper 5.4.7)."""

    receiver: int
    nonce: bytes
    encrypted_cookie: bytes

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Parse 64 bytes of type 3. Raises MessageError."""
        return cls(*_fields(_COOKIE_REPLY, MESSAGE_COOKIE_REPLY, data))

    def emit(self) -> bytes:
        """Return the message of 64 bytes. Raises MessageError if a field has a wrong size."""
        return _emit(_COOKIE_REPLY, MESSAGE_COOKIE_REPLY, self.receiver, self.nonce, self.encrypted_cookie)


# The macs are the last fields of both handshake messages, so these functions serve types 1 and 2 (whitepaper 5.4.4).


def before_mac1(message: bytes) -> bytes:
    """Return the part of the message that mac1 covers."""
    return message[: -2 * MAC_SIZE]


def before_mac2(message: bytes) -> bytes:
    """Return the part of the message that mac2 covers, which includes mac1."""
    return message[:-MAC_SIZE]


def mac1_of(message: bytes) -> bytes:
    return message[-2 * MAC_SIZE : -MAC_SIZE]


def mac2_of(message: bytes) -> bytes:
    return message[-MAC_SIZE:]
