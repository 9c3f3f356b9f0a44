"""UdpBind on the loopback interface: ports, trains, control messages and marks."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted import Script
from wyrmhole.net import sticky, udp_offload
from wyrmhole.net.bind import Bind, SendOutcome
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr

HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture
def bind() -> Iterator[UdpBind]:
    bind = UdpBind()
    bind.open(0)
    yield bind
    bind.close()


@pytest.fixture
def other() -> Iterator[UdpBind]:
    bind = UdpBind()
    bind.open(0)
    yield bind
    bind.close()


def sockaddr(bind: UdpBind, host: str) -> SockAddr:
    sock = bind._v6 if ":" in host else bind._v4
    assert sock is not None
    return (host, sock.port, 0, 0) if ":" in host else (host, sock.port)


def receive(bind: UdpBind, milliseconds: int = 5000) -> Received:
    """Return the next message from any descriptor."""
    poller = select.poll()
    for fileno in bind.filenos():
        poller.register(fileno, select.POLLIN)
    while True:
        ready = poller.poll(milliseconds)
        assert ready, "no message arrived"
        for fileno, _events in ready:
            received = bind.receive(fileno)
            if received is not None:
                return received


def test_the_udp_bind_implements_bind(bind: UdpBind) -> None:
    as_interface: Bind = bind
    assert len(as_interface.filenos()) == 3


def test_both_families_get_the_same_port(bind: UdpBind) -> None:
    assert bind._v4 is not None and bind._v6 is not None
    assert bind._v4.port == bind._v6.port != 0


def test_descriptors_are_close_on_exec_and_non_blocking(bind: UdpBind) -> None:
    for fileno in bind.filenos():
        assert not os.get_inheritable(fileno)
        assert not os.get_blocking(fileno)
        assert bind.receive(fileno) is None


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("tos", [0, 1, 3, 0x88, 0xFF])
def test_a_datagram_arrives_with_its_addresses_and_tos(bind: UdpBind, other: UdpBind, host: str, tos: int) -> None:
    """The outer ECN field and the DSCP can be set, and are reported (M48)."""
    assert bind.send(b"hello", 0, sockaddr(other, host), None, tos) == SendOutcome.SENT
    received = receive(other)
    assert bytes(received.view) == b"hello"
    assert received.sockaddr == sockaddr(bind, host)
    assert received.segment_size == 0
    assert received.tos == tos
    assert received.source is not None
    assert sticky.parse_source(received.source) == (host, socket.if_nametoindex("lo"))
    assert other.source_is_valid(received.sockaddr, received.source)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("tos", [0, 2])
def test_a_train_arrives_whole_with_its_size_and_source(bind: UdpBind, other: UdpBind, host: str, tos: int) -> None:
    """It includes the shorter last datagram. UDP_GRO keeps the source and the TOS."""
    train = b"".join(bytes([n]) * 1400 for n in range(40)) + b"end"
    assert bind.send(train, 1400, sockaddr(other, host), None, tos) == SendOutcome.SENT
    received = receive(other)
    assert bytes(received.view) == train
    assert received.segment_size == 1400
    assert received.tos == tos
    assert received.source is not None and sticky.parse_source(received.source)[0] == host


@pytest.mark.parametrize("host", HOSTS)
def test_the_longest_train_and_the_longest_datagram_arrive(bind: UdpBind, other: UdpBind, host: str) -> None:
    longest = 65_527 if ":" in host else 65_507
    assert bind.send(bytes(longest), 0, sockaddr(other, host), None) == SendOutcome.SENT
    assert len(receive(other).view) == longest
    train = bytes(udp_offload.MAX_TRAIN_BYTES)
    assert bind.send(train, 1452, sockaddr(other, host), None) == SendOutcome.SENT
    assert len(receive(other).view) == len(train)
    assert bind.counters.dropped == {}


@pytest.mark.parametrize("host", HOSTS)
def test_without_gro_datagrams_arrive_singly(bind: UdpBind, host: str) -> None:
    plain = UdpBind(gro=False)
    plain.open(0)
    bind.send(b"abcabcab", 3, sockaddr(plain, host), None)
    assert [bytes(receive(plain).view) for _ in range(3)] == [b"abc", b"abc", b"ab"]
    plain.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.77", "::1"])
def test_an_answer_leaves_from_the_address_that_was_contacted(bind: UdpBind, other: UdpBind, host: str) -> None:
    bind.send(b"question", 0, sockaddr(other, host), None)
    question = receive(other)
    other.send(b"answer", 0, question.sockaddr, question.source)
    assert receive(bind).sockaddr[0] == host


def test_a_datagram_with_a_foreign_source_is_still_sent(bind: UdpBind, other: UdpBind) -> None:
    for host, stranger in (("127.0.0.1", "203.0.113.9"), ("::1", "2001:db8::9")):
        source = sticky.emit_source(stranger, 1)
        assert not bind.source_is_valid(sockaddr(other, host), source)
        assert bind.send(b"x", 0, sockaddr(other, host), source) == SendOutcome.SOURCE_REJECTED
        assert receive(other).sockaddr[0] == host


def test_a_port_in_use_is_refused_in_either_family() -> None:
    """A configured port fails with EADDRINUSE, and no socket stays open."""
    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family, socket.SOCK_DGRAM) as owner:
            if family == socket.AF_INET6:
                owner.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            owner.bind((wildcard, 0))
            bind = UdpBind()
            with pytest.raises(OSError) as caught:
                bind.open(owner.getsockname()[1])
            assert caught.value.errno == errno.EADDRINUSE
            assert bind.filenos() == ()
            assert bind.open(0) != 0
            bind.close()


def test_another_random_port_is_tried_if_ipv6_cannot_have_it() -> None:
    taken: list[socket.socket] = []

    class Unlucky(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6 and len(taken) < 2:
                thief = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                thief.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                thief.bind(address)
                taken.append(thief)
            super().bind(address)

    bind = UdpBind(socket_factory=Unlucky)
    port = bind.open(0)
    assert len(taken) == 2 and bind._v6 is not None and bind._v6.port == port
    bind.close()
    for thief in taken:
        thief.close()


@pytest.mark.parametrize(
    ("missing", "host"), [(socket.AF_INET6, "127.0.0.1"), (socket.AF_INET, "::1")], ids=["no IPv6", "no IPv4"]
)
def test_one_address_family_is_enough(missing: int, host: str) -> None:
    """The reported port is correct, and a configured port is kept."""
    script = Script(missing=frozenset({missing}))
    bind = UdpBind(socket_factory=script.factory)
    port = bind.open(0)
    assert port == sockaddr(bind, host)[1] != 0
    bind.close()
    assert bind.open(port) == port
    absent: SockAddr = ("127.0.0.1", 9) if missing == socket.AF_INET else ("::1", 9, 0, 0)
    assert bind.send(b"xxyy", 2, absent, None) == SendOutcome.DROPPED
    assert bind.counters.dropped == {errno.EAFNOSUPPORT: 2}
    bind.close()


def test_neither_address_family_is_an_error() -> None:
    script = Script(missing=frozenset({socket.AF_INET, socket.AF_INET6}))
    bind = UdpBind(socket_factory=script.factory)
    with pytest.raises(OSError) as caught:
        bind.open(0)
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_close_can_be_repeated_and_the_bind_reopened() -> None:
    bind = UdpBind()
    bind.close()
    port = bind.open(0)
    with pytest.raises(OSError):
        bind.open(0)
    bind.close()
    bind.close()
    assert bind.filenos() == ()
    assert bind.open(port) == port
    bind.close()
    assert bind.send(b"x", 0, ("127.0.0.1", 9), None) == SendOutcome.DROPPED


def test_close_leaves_no_descriptor_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(20):
        bind = UdpBind()
        bind.open(0)
        bind.close()
    assert count() == before


def test_without_netlink_the_bind_still_works(monkeypatch: pytest.MonkeyPatch, other: UdpBind) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EPERM, "netlink is not available")

    monkeypatch.setattr(sticky, "RouteWatch", refuse)
    bind = UdpBind()
    bind.open(0)
    assert len(bind.filenos()) == 2
    assert bind.send(b"x", 0, sockaddr(other, "127.0.0.1"), None) == SendOutcome.SENT
    assert receive(other).sockaddr[0] == "127.0.0.1"
    assert bind.source_is_valid(("127.0.0.1", 9), sticky.emit_source("127.0.0.1", 1))
    assert not bind.take_stale_sources()
    bind.close()


GRO = (socket.IPPROTO_UDP, udp_offload.UDP_GRO)
PKTINFO4 = (socket.IPPROTO_IP, sticky.IP_PKTINFO)
PKTINFO6 = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)


@pytest.mark.parametrize(
    "control",
    [
        [],
        [(*GRO, b"")],
        [(*GRO, b"\x03")],
        [(*GRO, b"\x03\0\0")],
        [(*GRO, (0).to_bytes(4, "little"))],
        [(*GRO, (-1).to_bytes(4, "little", signed=True))],
        [(*GRO, (6).to_bytes(4, "little"))],
        [(*GRO, (1 << 30).to_bytes(4, "little"))],
        [(socket.IPPROTO_IP, udp_offload.UDP_GRO, (3).to_bytes(4, "little"))],
        [(*PKTINFO4, b"")],
        [(*PKTINFO4, bytes(11))],
        [(*PKTINFO4, bytes(20))],
        [(*PKTINFO6, bytes(12))],
        [(socket.SOL_SOCKET, sticky.IP_PKTINFO, bytes(12))],
        [(socket.IPPROTO_IP, socket.IP_TOS, b"")],
        [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, b"\x03")],
    ],
)
def test_invalid_control_messages_are_ignored(control: list[tuple[int, int, bytes]]) -> None:
    """Without a valid size below the length, there is one datagram; an invalid source is treated as missing."""

    class Odd(socket.socket):
        def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> Any:
            buffers[0][:6] = b"abcdef"
            return 6, control, 0, ("192.0.2.1", 9)

    bind = UdpBind(socket_factory=Odd)
    bind.open(0)
    assert bind.receive(bind.filenos()[0]) == Received(memoryview(b"abcdef"), 0, ("192.0.2.1", 9), None, 0)
    bind.close()


def test_a_truncated_datagram_is_skipped() -> None:
    """The next datagram is received."""
    messages: list[Any] = [(6, [], socket.MSG_TRUNC, ("192.0.2.1", 9)), (6, [], 0, ("192.0.2.2", 9))]

    class Cutting(socket.socket):
        def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> Any:
            return messages.pop(0)

    bind = UdpBind(socket_factory=Cutting)
    bind.open(0)
    received = bind.receive(bind.filenos()[0])
    assert received is not None and received.sockaddr == ("192.0.2.2", 9)
    assert bind.counters.truncated == 1
    bind.close()


@pytest.mark.network
def test_a_mark_applies_immediately_and_after_reopening(bind: UdpBind) -> None:
    def marks() -> list[int]:
        socks = [sock for sock in (bind._v4, bind._v6) if sock is not None]
        options = [sock._socket.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4) for sock in socks]
        return [int.from_bytes(option, sys.byteorder) for option in options]

    bind.set_mark(0x1234)
    assert marks() == [0x1234, 0x1234]
    assert bind.take_stale_sources()
    bind.close()
    bind.open(0)
    assert marks() == [0x1234, 0x1234]
    bind.set_mark(0xFFFF_FFFE)
    assert marks() == [0xFFFF_FFFE, 0xFFFF_FFFE], "a mark is unsigned"
    bind.set_mark(0)
    assert marks() == [0, 0]


def test_a_refused_mark_is_an_error_and_leaves_nothing_open() -> None:
    class Unprivileged(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            if arguments[1] == socket.SO_MARK:
                raise PermissionError(errno.EPERM, "not permitted")
            super().setsockopt(*arguments)

    bind = UdpBind(socket_factory=Unprivileged)
    bind.set_mark(7)
    with pytest.raises(PermissionError):
        bind.open(0)
    assert bind.filenos() == ()


def test_an_empty_datagram_is_received(bind: UdpBind, other: UdpBind) -> None:
    bind.send(b"", 0, sockaddr(other, "127.0.0.1"), None)
    received = receive(other)
    assert len(received.view) == 0 and received.segment_size == 0


@pytest.mark.network
def test_socket_buffers_are_large(bind: UdpBind) -> None:
    """7 MiB, regardless of the system's limit; the kernel reports twice the requested size."""
    for fileno in bind.filenos()[:2]:
        with socket.socket(fileno=os.dup(fileno)) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 14 << 20
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 14 << 20
