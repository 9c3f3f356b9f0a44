"""Sticky sources in the two forms of PKTINFO, and parsing of netlink messages."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.net import netlink
from wyrmhole.net.sticky import RouteWatch, emit_source, parse_source, pin_source


@pytest.fixture
def watch() -> Iterator[RouteWatch]:
    watch = RouteWatch()
    yield watch
    watch.close()


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 2**31 - 1))
def test_a_source_keeps_its_address_and_its_interface(host: str, interface: int) -> None:
    assert parse_source(emit_source(host, interface)) == (host, interface)


@pytest.mark.parametrize("size", [0, 4, 11, 13, 16, 19, 21])
def test_a_source_of_another_size_is_invalid(size: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        parse_source(bytes(size))


def test_routing_chooses_the_interface_of_a_pinned_source() -> None:
    assert pin_source(emit_source("192.0.2.1", 7)) == (0, 8, bytes(4) + bytes([192, 0, 2, 1]) * 2)
    level, kind, value = pin_source(emit_source("2001:db8::1", 7))
    assert (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
    assert parse_source(value) == ("2001:db8::1", 0)


def test_a_link_local_source_keeps_its_interface() -> None:
    assert parse_source(pin_source(emit_source("fe80::1", 7))[2]) == ("fe80::1", 7)


LOOPBACK = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("destination", "source", "valid"),
    [
        (("127.0.0.1", 9), emit_source("127.0.0.5", LOOPBACK), True),
        (("127.0.0.1", 9), emit_source("127.0.0.5", LOOPBACK + 1000), False),
        (("127.0.0.1", 9), emit_source("203.0.113.9", LOOPBACK), False),
        (("127.0.0.1", 9), emit_source("::1", LOOPBACK), False),
        (("127.0.0.1", 9), b"nonsense", False),
        (("::1", 9, 0, 0), emit_source("::1", LOOPBACK), True),
        (("::1", 9, 0, 0), emit_source("::1", LOOPBACK + 1000), False),
        (("::1", 9, 0, 0), emit_source("2001:db8::9", LOOPBACK), False),
        (("fe80::1", 9, 0, 12345), emit_source("fe80::2", 12345), False),
    ],
)
def test_a_source_is_valid_if_the_kernel_would_use_it(
    watch: RouteWatch, destination: tuple[str, int], source: bytes, valid: bool
) -> None:
    assert watch.source_is_valid(destination, source, 0) is valid


def test_a_source_is_kept_if_the_kernel_cannot_be_queried(watch: RouteWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> int:
        raise OSError(errno.ENOBUFS, "no buffers")

    monkeypatch.setattr(netlink.Client, "output_interface", fail)
    assert watch.source_is_valid(("127.0.0.1", 9), emit_source("127.0.0.5", LOOPBACK), 0)


def test_lost_netlink_messages_count_as_a_change(watch: RouteWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watch.take_changes()
    monkeypatch.setattr(netlink, "drain", lambda _socket: ([], True))
    assert watch.take_changes()


def test_an_overflow_of_the_listener_is_reported() -> None:
    class Overflowed:
        def __init__(self) -> None:
            self.answers: list[bytes | int] = [b"\x10\0\0\0" + bytes(12), errno.ENOBUFS, b"\x10\0\0\0" + bytes(12)]

        def recv(self, _size: int) -> bytes:
            answer = self.answers.pop(0) if self.answers else errno.EAGAIN
            if isinstance(answer, int):
                raise BlockingIOError(answer, "") if answer == errno.EAGAIN else OSError(answer, "")
            return answer

    messages, lost = netlink.drain(Overflowed())  # type: ignore[arg-type]
    assert len(messages) == 2 and lost


@given(st.binary(max_size=200))
def test_parsing_accepts_any_bytes(data: bytes) -> None:
    for message in netlink.parse_messages(data):
        assert len(message.payload) <= len(data)
        assert netlink.parse_link_index(message) is not None
        netlink.parse_attributes(message.payload, 16)


def test_messages_and_attributes_are_parsed_in_order() -> None:
    first = struct.pack("=IHHII", 21, 16, 0, 7, 0) + b"hello" + bytes(3)
    second = struct.pack("=IHHII", 16, 17, 0, 8, 0)
    cut_off = struct.pack("=IHHII", 17, 18, 0, 9, 0)
    messages = list(netlink.parse_messages(first + second + cut_off))
    assert [(m.kind, m.sequence, bytes(m.payload)) for m in messages] == [(16, 7, b"hello"), (17, 8, b"")]
    attributes = struct.pack("=HH", 5, 1) + b"x" + bytes(3) + struct.pack("=HH", 8, 2 | 0x8000) + b"four"
    assert netlink.parse_attributes(memoryview(b"head" + attributes), 4) == {1: b"x", 2: b"four"}
    assert netlink.parse_attributes(memoryview(struct.pack("=HH", 3, 1)), 0) == {}
    assert netlink.parse_attributes(memoryview(struct.pack("=HH", 9, 1)), 0) == {}


def test_a_refusal_of_the_kernel_is_raised_with_its_errno() -> None:
    client = netlink.Client()
    with pytest.raises(netlink.Refused) as caught:
        client.link("no-such-link", None)
    assert caught.value.errno == errno.ENODEV
    assert client.link("lo", None).interface == LOOPBACK
    client.close()
