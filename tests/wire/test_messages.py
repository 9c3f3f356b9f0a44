"""The layout of the four message types, byte by byte."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.wire import messages
from wyrmhole.wire.messages import (
    CookieReply,
    Initiation,
    MessageError,
    Response,
    TooShort,
    UnknownType,
    WrongLength,
    classify,
)

indices = st.integers(0, 2**32 - 1)


def octets(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


initiations = st.builds(Initiation, indices, octets(32), octets(48), octets(28), octets(16), octets(16))
responses = st.builds(Response, indices, indices, octets(32), octets(16), octets(16), octets(16))
cookie_replies = st.builds(CookieReply, indices, octets(24), octets(32))

INITIATION = Initiation(0x04030201, b"e" * 32, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16)
RESPONSE = Response(0x04030201, 0x08070605, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16)
COOKIE_REPLY = CookieReply(0x04030201, b"n" * 24, b"c" * 32)
SIZES = {1: 148, 2: 92, 3: 64}


def test_initiation_layout() -> None:
    """148 bytes, with three reserved bytes of zero (M4, M8)."""
    expected = b"\x01\0\0\0\x01\x02\x03\x04" + b"e" * 32 + b"s" * 48 + b"t" * 28 + b"1" * 16 + b"2" * 16
    assert INITIATION.emit() == expected
    assert len(expected) == messages.INITIATION_SIZE == 148


def test_response_layout() -> None:
    """92 bytes, with three reserved bytes of zero (M5, M8)."""
    indices_ = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    assert RESPONSE.emit() == b"\x02\0\0\0" + indices_ + b"e" * 32 + b"n" * 16 + b"1" * 16 + b"2" * 16
    assert len(RESPONSE.emit()) == messages.RESPONSE_SIZE == 92


def test_cookie_reply_layout() -> None:
    """64 bytes, with three reserved bytes of zero (M6, M8)."""
    assert COOKIE_REPLY.emit() == b"\x03\0\0\0\x01\x02\x03\x04" + b"n" * 24 + b"c" * 32
    assert len(COOKIE_REPLY.emit()) == messages.COOKIE_REPLY_SIZE == 64


def test_transport_header_layout() -> None:
    """The counter has 64 bits, little endian (M7, M20)."""
    header = messages.TRANSPORT_HEADER.pack(messages.MESSAGE_TRANSPORT, 0x04030201, 0x0807060504030201)
    assert header == bytes.fromhex("04000000 01020304 0102030405060708")
    assert len(header) == messages.TRANSPORT_HEADER_SIZE
    assert int.from_bytes(header[8:], "little") == 0x0807060504030201


def test_offsets_point_at_the_indices() -> None:
    def index(data: bytes, offset: int) -> int:
        return int.from_bytes(data[offset : offset + 4], "little")

    assert index(INITIATION.emit(), messages.SENDER_OFFSET) == INITIATION.sender
    assert index(RESPONSE.emit(), messages.SENDER_OFFSET) == RESPONSE.sender
    assert index(RESPONSE.emit(), messages.RESPONSE_RECEIVER_OFFSET) == RESPONSE.receiver
    assert index(COOKIE_REPLY.emit(), messages.RECEIVER_OFFSET) == COOKIE_REPLY.receiver


@pytest.mark.parametrize("message", [INITIATION.emit(), RESPONSE.emit()])
def test_macs_are_the_last_fields(message: bytes) -> None:
    assert messages.mac1_of(message) == b"1" * 16
    assert messages.mac2_of(message) == b"2" * 16
    assert messages.before_mac1(message) + b"1" * 16 == messages.before_mac2(message)
    assert messages.before_mac2(message) + b"2" * 16 == message


@given(initiations | responses | cookie_replies)
def test_parse_inverts_emit(message: Initiation | Response | CookieReply) -> None:
    data = message.emit()
    assert SIZES[classify(data)] == len(data)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert type(message).parse(buffer) == message


@pytest.mark.parametrize("message", [INITIATION, RESPONSE, COOKIE_REPLY])
def test_a_length_off_by_one_is_refused(message: Initiation | Response | CookieReply) -> None:
    """Each handshake message has a fixed length (M4, M5, M6)."""
    data = message.emit()
    for changed in (data[:-1], data + b"\0", data + bytes(65_507 - len(data))):
        with pytest.raises(WrongLength):
            classify(changed)
        with pytest.raises(WrongLength):
            type(message).parse(changed)


def test_transport_messages_have_at_least_32_bytes() -> None:
    """The header and the tag have 16 bytes each (M7)."""
    with pytest.raises(WrongLength):
        classify(b"\x04" + bytes(30))
    for size in (32, 33, 1452, 65_535):
        assert classify(b"\x04" + bytes(size - 1)) == messages.MESSAGE_TRANSPORT


@pytest.mark.parametrize("size", range(4))
def test_fewer_than_four_bytes_are_too_short(size: int) -> None:
    with pytest.raises(TooShort):
        classify(b"\x01\0\0\0"[:size])


@pytest.mark.parametrize("kind", [0, *range(5, 256)])
def test_other_types_are_unknown(kind: int) -> None:
    for size in (4, 32, 64, 92, 148):
        with pytest.raises(UnknownType):
            classify(bytes((kind,)) + bytes(size - 1))


@pytest.mark.parametrize("bit", range(8, 32))
@pytest.mark.parametrize("message", [INITIATION.emit(), RESPONSE.emit(), COOKIE_REPLY.emit(), b"\x04" + bytes(31)])
def test_each_reserved_bit_makes_the_type_unknown(message: bytes, bit: int) -> None:
    """The reserved bytes must be zero (M8)."""
    kind = int.from_bytes(message[:4], "little") | 1 << bit
    with pytest.raises(UnknownType):
        classify(kind.to_bytes(4, "little") + message[4:])


@pytest.mark.parametrize("kind", [Initiation, Response, CookieReply])
def test_a_message_of_another_type_does_not_parse(kind: type[Initiation | Response | CookieReply]) -> None:
    for message in (INITIATION, RESPONSE, COOKIE_REPLY):
        if type(message) is not kind:
            with pytest.raises(MessageError):
                kind.parse(message.emit())


@given(
    st.binary(max_size=160)
    | st.builds(lambda kind, rest: bytes([kind, 0, 0, 0]) + rest, indices.map(lambda n: n % 6), st.binary(max_size=150))
)
def test_any_bytes_parse_or_raise_message_error(data: bytes) -> None:
    for parse in (classify, Initiation.parse, Response.parse, CookieReply.parse):
        with contextlib.suppress(MessageError):
            parse(data)


@pytest.mark.parametrize(
    "message",
    [
        Initiation(1, b"e" * 31, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16),
        Initiation(1, b"e" * 32, b"s" * 48, b"t" * 29, b"1" * 16, b"2" * 16),
        Response(1, 2**32, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16),
        Response(1, 2, b"e" * 32, b"", b"1" * 16, b"2" * 16),
        CookieReply(-1, b"n" * 24, b"c" * 32),
        CookieReply(1, b"n" * 24, b"c" * 33),
    ],
)
def test_a_field_of_the_wrong_size_is_refused(message: Initiation | Response | CookieReply) -> None:
    """It is not silently truncated or padded."""
    with pytest.raises(MessageError):
        message.emit()
