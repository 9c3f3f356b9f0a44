"""The bytes of a connection: framing, size limits, truncation, and no exception for any input."""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.control.uapi.format import (
    MAX_LINE,
    DropsOperation,
    GetOperation,
    Operation,
    Refusal,
    SetOperation,
    UapiParser,
    parse_set,
)
from wyrmhole.device.config import DeviceChange
from wyrmhole.errors import UapiError

KEY = "ab" * 32
PEER = f"public_key={KEY}"


def feed(data: bytes, resolve: dict[str, int] | None = None) -> list[Operation]:
    return UapiParser((resolve or {}).__getitem__).feed(data)


# Framing


def test_get_is_one_line_and_a_blank_line() -> None:
    assert feed(b"get=1\n") == []
    assert feed(b"get=1\n\n") == [GetOperation()]
    assert feed(b"drops=1\n\n") == [DropsOperation()]


def test_operations_in_one_write_are_all_found_in_order() -> None:
    operations = feed(b"set=1\nlisten_port=1\n\nget=1\n\nset=1\n\n")
    assert operations == [SetOperation(DeviceChange(listen_port=1)), GetOperation(), SetOperation(DeviceChange())]


def test_bytes_may_arrive_one_by_one() -> None:
    data = b"set=1\nlisten_port=1\n\nget=1\n\n"
    parser = UapiParser()
    operations = [operation for byte in data for operation in parser.feed(bytes([byte]))]
    assert operations == feed(data)


def test_bad_line_fails_only_its_own_operation() -> None:
    first, second = feed(b"set=1\nlisten_port=no\nlisten_port=2\n\nset=1\nlisten_port=3\n\n")
    assert isinstance(first, Refusal) and not first.final
    assert first.error.errno_value == errno.EINVAL
    assert second == SetOperation(DeviceChange(listen_port=3))


def test_first_error_of_an_operation_is_its_answer() -> None:
    (refusal,) = feed(b"set=1\nno equals sign\nlisten_port=no\n\n")
    assert isinstance(refusal, Refusal) and refusal.error.errno_value == errno.EPROTO


def test_get_with_lines_is_invalid() -> None:
    (refusal,) = feed(b"get=1\nlisten_port=1\n\n")
    assert isinstance(refusal, Refusal) and refusal.error.errno_value == errno.EINVAL and not refusal.final


@pytest.mark.parametrize("value", [b"\0", b"\xff\xfe", "é".encode(), b"1\r\r", b"\r1", b"\x80"])
def test_odd_bytes_in_a_set_are_invalid(value: bytes) -> None:
    (refusal,) = feed(b"set=1\nlisten_port=" + value + b"\n\n")
    assert isinstance(refusal, Refusal) and refusal.error.errno_value == errno.EINVAL


@pytest.mark.parametrize("line", [b"\xff", b"listen_port", b"\x80\x80 \xc3", b"\xe2\x82"])
def test_line_of_any_bytes_without_equals_sign_is_a_protocol_error(line: bytes) -> None:
    (refusal,) = feed(b"set=1\n" + line + b"\n\n")
    assert isinstance(refusal, Refusal) and refusal.error.errno_value == errno.EPROTO and not refusal.final


def test_set_may_have_windows_line_ends() -> None:
    assert feed(b"set=1\nlisten_port=1\r\n\r\n") == [SetOperation(DeviceChange(listen_port=1))]


@pytest.mark.parametrize("length", ["08", "00", "+8", "-8", "8 ", " 8", "8_0", "٨", "", "33", "0x8", "8/8"])
@pytest.mark.parametrize("address", ["10.0.0.0", "fd00::"])
def test_length_is_plain_digits_without_leading_zeros(address: str, length: str) -> None:
    if address == "fd00::" and length == "33":
        length = "129"
    (refusal,) = feed(f"set=1\n{PEER}\nallowed_ip={address}/{length}\n\n".encode())
    assert isinstance(refusal, Refusal) and refusal.error.errno_value == errno.EINVAL


@pytest.mark.parametrize("start", [b"\n", b"get=2\n", b"set\n", b"GET /\r\n", b"\0\n", b"\xff\n", b"get=1\r\n"])
def test_unknown_operation_ends_the_conversation(start: bytes) -> None:
    (refusal,) = feed(start + b"get=1\n\n")
    assert isinstance(refusal, Refusal) and refusal.final and refusal.error.errno_value == errno.EPROTO


@pytest.mark.parametrize("start", [b"", b"set=1\n", b"get=1\n", b"set=1\nbad\n"])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_endless_line_ends_the_conversation(start: bytes, end: bytes) -> None:
    (refusal,) = feed(start + b"x" * (MAX_LINE + 1) + end)
    assert isinstance(refusal, Refusal) and refusal.final and refusal.error.errno_value == errno.EPROTO


def test_nothing_is_stored_or_parsed_after_a_final_refusal() -> None:
    parser = UapiParser()
    assert len(parser.feed(b"x" * 10_000)) == 1
    assert parser.feed(b"y" * 100_000) == []
    assert parser.feed(b"\nget=1\n\n") == []
    assert parser.finish() is None


def test_endless_operation_ends_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.control.uapi.format.MAX_OPERATION", 1000)
    parser = UapiParser()
    operations = [operation for _ in range(100) for operation in parser.feed(b"set=1\nlisten_port=1\n")]
    (refusal,) = operations
    assert isinstance(refusal, Refusal) and refusal.final and refusal.error.errno_value == errno.EMSGSIZE


def test_size_limit_applies_to_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wyrmhole.control.uapi.format.MAX_OPERATION", 1000)
    parser = UapiParser()
    assert all(
        parser.feed(b"set=1\nlisten_port=1\n\n") == [SetOperation(DeviceChange(listen_port=1))] for _ in range(99)
    )


@pytest.mark.parametrize("data", [b"set=1\nfwmark=1\n", b"set=1\nfwmark=1", b"get=1\n", b"ge", b"set=1\nbad\n"])
def test_truncated_operation_is_refused(data: bytes) -> None:
    parser = UapiParser()
    assert parser.feed(data) == []
    assert not parser.is_between_operations
    refusal = parser.finish()
    assert refusal is not None and refusal.final and refusal.error.errno_value == errno.EPROTO


def test_end_between_operations_needs_no_answer() -> None:
    parser = UapiParser()
    assert parser.finish() is None
    parser.feed(b"get=1\n\n")
    assert parser.is_between_operations
    assert parser.finish() is None


@given(st.lists(st.binary(max_size=200)))
def test_arbitrary_bytes_never_raise(chunks: list[bytes]) -> None:
    parser = UapiParser()
    for chunk in chunks:
        parser.feed(chunk)
    parser.finish()


_words = st.sampled_from(
    [
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "update_only",
        "remove",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "replace_allowed_ips",
        "allowed_ip",
        "protocol_version",
        "other",
    ]
)
_values = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["true", "1", KEY, "10.0.0.0/8", "-::/0", "1.2.3.4:5", "[::1]:5", "[fe80::1%2]:5", "65536"]),
)


@given(st.lists(st.one_of(st.builds("{}={}".format, _words, _values), st.text(max_size=80))))
def test_lines_parse_or_raise_uapi_error(lines: list[str]) -> None:
    try:
        parse_set(lines)
    except UapiError as error:
        assert error.errno_value in (errno.EINVAL, errno.EPROTO)


@given(st.lists(st.builds("{}={}".format, _words, _values)), st.randoms())
def test_result_does_not_depend_on_how_bytes_are_split(lines: list[str], random: Random) -> None:
    data = ("set=1\n" + "\n".join(lines) + "\n\nget=1\n\n").encode(errors="ignore")
    whole, parser, pieces = UapiParser().feed(data), UapiParser(), []
    while data:
        cut = random.randint(1, len(data))
        pieces += parser.feed(data[:cut])
        data = data[cut:]
    assert [repr(operation) for operation in pieces] == [repr(operation) for operation in whole]


# Sizes


def test_largest_sets_in_use_are_accepted() -> None:
    """130,560 allowed ips of one peer, and 65,536 peers."""
    ips = "".join(f"allowed_ip=10.{i >> 16}.{i >> 8 & 255}.{i & 255}/32\n" for i in range(130_560))
    (operation,) = feed(f"set=1\n{PEER}\n{ips}\n".encode())
    assert isinstance(operation, SetOperation) and len(operation.change.peers[0].allowed_ips) == 130_560
    peers = "".join(f"public_key={i:064x}\n" for i in range(65_536))
    (operation,) = feed(f"set=1\n{peers}\n".encode())
    assert isinstance(operation, SetOperation) and len(operation.change.peers) == 65_536
