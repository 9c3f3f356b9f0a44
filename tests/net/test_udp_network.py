"""UdpBind between network namespaces: several addresses, changing routes and narrow paths."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.namespaces import Namespace, namespaces
from wyrmhole.net import sticky
from wyrmhole.net.bind import SendOutcome
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr

pytestmark = pytest.mark.network

PORT = 51820
FAMILIES = pytest.mark.parametrize("version", [4, 6])


class Host:
    """A namespace and a bind that runs inside it."""

    def __init__(self, namespace: Namespace, *, gro: bool = True) -> None:
        self.namespace = namespace
        self.bind = UdpBind(gro=gro)
        with namespace.entered():
            self.bind.open(PORT)

    def send(
        self, data: bytes, size: int, sockaddr: SockAddr, source: bytes | None = None, tos: int = 0
    ) -> SendOutcome:
        with self.namespace.entered():
            return self.bind.send(data, size, sockaddr, source, tos)

    def is_valid(self, received: Received) -> bool:
        assert received.source is not None
        with self.namespace.entered():
            return self.bind.source_is_valid(received.sockaddr, received.source)

    def receive(self, milliseconds: int = 5000) -> Received | None:
        poller = select.poll()
        for fileno in self.bind.filenos():
            poller.register(fileno, select.POLLIN)
        while ready := poller.poll(milliseconds):
            for fileno, _events in ready:
                received = self.bind.receive(fileno)
                if received is not None:
                    return received
        return None

    def must_receive(self) -> Received:
        received = self.receive()
        assert received is not None, "no message arrived"
        return received

    def notice_changes(self) -> bool:
        for fileno in self.bind.filenos():
            self.bind.receive(fileno)
        return self.bind.take_stale_sources()


def at(address: str) -> SockAddr:
    return (address, PORT, 0, 0) if ":" in address else (address, PORT)


@contextmanager
def opened(*members: Namespace) -> Iterator[list[Host]]:
    hosts = [Host(namespace) for namespace in members]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.bind.close()


@pytest.fixture
def pair() -> Iterator[list[Namespace]]:
    """Yield two hosts on one link; the second has two addresses of each family."""
    with namespaces(2) as (a, b):
        a.join(b, "east", "west")
        a.address("east", "10.1.0.1/24", "fd01::1/64")
        b.address("west", "10.1.0.2/24", "10.1.0.3/24", "fd01::2/64", "fd01::3/64")
        yield [a, b]


def address(version: int, host: int) -> str:
    return f"10.1.0.{host}" if version == 4 else f"fd01::{host}"


@FAMILIES
@pytest.mark.parametrize("host", [2, 3])
@pytest.mark.parametrize("size", [0, 1400])
def test_answers_leave_from_the_address_that_was_contacted(
    pair: list[Namespace], version: int, host: int, size: int
) -> None:
    """The source is sticky, even for a train that UDP_GRO merged."""
    with opened(*pair) as (asker, answerer):
        asker.send(b"q" * 14_000 if size else b"q", size, at(address(version, host)))
        question = answerer.must_receive()
        assert question.segment_size == size
        assert question.source is not None
        assert sticky.parse_source(question.source)[0] == address(version, host)
        assert answerer.is_valid(question)
        answerer.send(b"a" * 14_000, 1400, question.sockaddr, question.source)
        answer = asker.must_receive()
        assert answer.sockaddr[0] == address(version, host)
        assert answer.segment_size == 1400


def test_link_local_peers_exchange_datagrams(pair: list[Namespace]) -> None:
    pair[0].ip("address", "add", "fe80::aa/64", "dev", "east", "nodad")
    pair[1].ip("address", "add", "fe80::bb/64", "dev", "west", "nodad")
    with opened(*pair) as (asker, answerer):
        with pair[0].entered():
            scope = socket.if_nametoindex("east")
        asker.send(b"q", 0, ("fe80::bb", PORT, 0, scope))
        question = answerer.must_receive()
        assert question.source is not None and answerer.is_valid(question)
        assert answerer.send(b"a", 0, question.sockaddr, question.source) == SendOutcome.SENT
        assert asker.must_receive().sockaddr == ("fe80::bb", PORT, 0, scope)


@FAMILIES
def test_no_datagram_is_lost_when_an_address_is_removed(pair: list[Namespace], version: int) -> None:
    with opened(*pair) as (asker, answerer):
        asker.send(b"q", 0, at(address(version, 3)))
        question = answerer.must_receive()
        answerer.notice_changes()
        prefix = 24 if version == 4 else 64
        pair[1].ip("address", "del", f"{address(version, 3)}/{prefix}", "dev", "west")
        assert answerer.notice_changes()
        assert not answerer.notice_changes()
        assert not answerer.is_valid(question)
        outcome = answerer.send(b"abcabc", 3, question.sockaddr, question.source)
        assert outcome == SendOutcome.SOURCE_REJECTED
        assert asker.must_receive().sockaddr[0] == address(version, 2)


@FAMILIES
def test_a_better_route_invalidates_the_source(version: int) -> None:
    with namespaces(2) as (a, b):
        a.join(b, "east", "west")
        a.join(b, "east2", "west2")
        a.address("east", "10.1.0.1/24", "fd01::1/64")
        b.address("west", "10.1.0.2/24", "fd01::2/64")
        b.address("west2", "10.2.0.2/24", "fd02::2/64")
        with opened(a, b) as (asker, answerer):
            asker.send(b"q", 0, at(address(version, 2)))
            question = answerer.must_receive()
            answerer.notice_changes()
            assert answerer.is_valid(question)
            flag, host = ("-4", "10.1.0.1/32") if version == 4 else ("-6", "fd01::1/128")
            b.ip(flag, "route", "add", host, "dev", "west2")
            assert answerer.notice_changes()
            assert not answerer.is_valid(question)


@FAMILIES
def test_the_route_lookup_uses_the_mark(version: int) -> None:
    with namespaces(2) as (a, b):
        a.join(b, "east", "west")
        a.join(b, "east2", "west2")
        a.address("east", "10.1.0.1/24", "fd01::1/64")
        b.address("west", "10.1.0.2/24", "fd01::2/64")
        flag, everything = f"-{version}", "0.0.0.0/0" if version == 4 else "::/0"
        b.ip(flag, "route", "add", everything, "dev", "west2", "table", "77")
        b.ip(flag, "rule", "add", "fwmark", "77", "lookup", "77", "priority", "10")
        with opened(a, b) as (asker, answerer):
            asker.send(b"q", 0, at(address(version, 2)))
            question = answerer.must_receive()
            assert answerer.is_valid(question)
            answerer.bind.set_mark(77)
            assert answerer.notice_changes()
            assert not answerer.is_valid(question)


def test_a_link_that_goes_down_is_noticed(pair: list[Namespace]) -> None:
    with opened(*pair) as (_asker, answerer):
        answerer.notice_changes()
        pair[0].ip("link", "set", "east", "down")
        assert wait_until(answerer.notice_changes)


def wait_until(condition: Callable[[], bool]) -> bool:
    poller = select.poll()
    for _ in range(100):
        if condition():
            return True
        poller.poll(20)
    return False


@FAMILIES
def test_a_train_above_the_mtu_of_its_link_arrives_as_fragments(pair: list[Namespace], version: int) -> None:
    """EMSGSIZE is remembered for the destination; trains to other destinations stay whole."""
    for namespace, device in zip(pair, ("east", "west"), strict=True):
        namespace.ip("link", "set", device, "mtu", "1300")
    with opened(*pair) as (sender, receiver):
        datagrams = [bytes([n]) * 1452 for n in range(20)]
        assert sender.send(b"".join(datagrams), 1452, at(address(version, 2))) == SendOutcome.SENT
        assert [bytes(receiver.must_receive().view) for _ in datagrams] == datagrams
        assert sender.bind.counters.gso_fallbacks == 0
        assert sender.bind.counters.fragmented_trains == 1
        sender.send(bytes(3000), 1000, at(address(version, 3)))
        assert receiver.must_receive().segment_size == 1000
        for namespace, device in zip(pair, ("east", "west"), strict=True):
            namespace.ip("link", "set", device, "mtu", "1500")
        assert sender.notice_changes()
        sender.send(bytes(2904), 1452, at(address(version, 2)))
        assert receiver.must_receive().segment_size == 1452


def test_ipv4_datagrams_may_be_fragmented_on_the_path(pair: list[Namespace]) -> None:
    """Neither single datagrams nor trains have the don't-fragment bit, so no narrow path drops them."""
    ipv4 = 0x0800
    with pair[1].entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ipv4))
        tap.bind(("west", ipv4))
        tap.settimeout(5)
    with opened(*pair) as (sender, _receiver), tap:
        for data, size in ((b"x", 0), (bytes(2800), 1400)):
            sender.send(data, size, at("10.1.0.2"))
            assert tap.recv(70_000)[6] & 0x40 == 0


@FAMILIES
def test_bulk_passes_a_router_with_a_narrow_link(version: int) -> None:
    """The path has an MTU of 1300 between links of 1500."""
    with namespaces(3) as (a, router, b):
        a.join(router, "east", "west")
        router.join(b, "east", "west")
        for namespace, device in ((router, "east"), (b, "west")):
            namespace.ip("link", "set", device, "mtu", "1300")
        a.address("east", "10.1.0.1/24", "fd01::1/64")
        router.address("west", "10.1.0.254/24", "fd01::fe/64")
        router.address("east", "10.2.0.254/24", "fd02::fe/64")
        b.address("west", "10.2.0.2/24", "fd02::2/64")
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        for namespace, via4, via6 in ((a, "10.1.0.254", "fd01::fe"), (b, "10.2.0.254", "fd02::fe")):
            namespace.ip("route", "add", "default", "via", via4)
            namespace.ip("-6", "route", "add", "default", "via", via6)
        with opened(a, b) as (sender, receiver):
            destination = at("10.2.0.2" if version == 4 else "fd02::2")
            datagrams = [bytes([n]) * 1452 for n in range(20)]
            for _ in range(20):
                assert sender.send(b"".join(datagrams), 1452, destination) == SendOutcome.SENT
                first = receiver.receive(200)
                if first is not None:
                    break
            assert first is not None, "no message arrived"
            got = bytes(first.view)
            while len(got) < 20 * 1452:
                got += bytes(receiver.must_receive().view)
            assert got == b"".join(datagrams)
            assert sender.bind.counters.gso_fallbacks == 0


def test_datagrams_with_different_ecn_fields_are_not_merged(pair: list[Namespace]) -> None:
    """UDP_GRO does not merge them either (M48)."""
    with opened(*pair) as (sender, receiver):
        for tos in (1, 1, 3, 1):
            sender.send(bytes(2800), 1400, at("10.1.0.2"), None, tos)
        seen: list[int] = []
        while len(seen) < 8:
            received = receiver.must_receive()
            seen += [received.tos] * max(1, len(received.view) // 1400)
        assert seen == [1, 1, 1, 1, 3, 3, 1, 1]


@pytest.mark.parametrize("when", ["all", "default"])
def test_the_bind_works_with_ipv6_disabled_by_sysctl(when: str) -> None:
    with namespaces(2) as (a, b):
        for namespace in (a, b):
            namespace.sysctl(f"net.ipv6.conf.{when}.disable_ipv6", "1")
        a.join(b, "east", "west")
        a.address("east", "10.1.0.1/24")
        b.address("west", "10.1.0.2/24")
        with opened(a, b) as (asker, answerer):
            assert asker.send(b"q", 0, at("10.1.0.2")) == SendOutcome.SENT
            assert answerer.must_receive().sockaddr == at("10.1.0.1")
            assert asker.send(b"q", 0, at("fd01::2")) == SendOutcome.DROPPED


def test_sending_works_again_right_after_a_lost_route(pair: list[Namespace]) -> None:
    """ENETUNREACH drops and counts the datagram, and has no other effect."""
    with opened(*pair) as (asker, answerer):
        asker.send(b"q", 0, at("10.1.0.2"))
        question = answerer.must_receive()
        pair[1].ip("address", "flush", "dev", "west")
        assert answerer.send(b"a", 0, question.sockaddr, question.source) == SendOutcome.DROPPED
        pair[1].address("west", "10.1.0.9/24")
        assert answerer.send(b"a", 0, question.sockaddr, question.source) == SendOutcome.SOURCE_REJECTED
        assert asker.must_receive().sockaddr[0] == "10.1.0.9"


def test_ipv6_datagrams_have_no_flow_label(pair: list[Namespace]) -> None:
    """Like in the kernel: a label per socket would reveal that two endpoints belong to one host."""
    ipv6 = 0x86DD
    with pair[1].entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ipv6))
        tap.bind(("west", ipv6))
        tap.settimeout(5)
    with opened(*pair) as (sender, receiver), tap:
        for data, size in ((b"x", 0), (bytes(2800), 1400)):
            sender.send(data, size, at("fd01::2"), None, 2)
            receiver.must_receive()
            while (packet := tap.recv(70_000))[6] != socket.IPPROTO_UDP:
                pass
            assert int.from_bytes(packet[:4], "big") == 6 << 28 | 2 << 20


@pytest.mark.parametrize("address", ["10.1.0.255", "255.255.255.255"])
def test_a_peer_can_be_reached_by_broadcast(pair: list[Namespace], address: str) -> None:
    pair[0].ip("route", "add", "255.255.255.255", "dev", "east")
    with opened(*pair) as (asker, answerer):
        assert asker.send(b"q", 0, at(address)) == SendOutcome.SENT
        question = answerer.must_receive()
        assert question.sockaddr == at("10.1.0.1")
        outcome = answerer.send(b"a", 0, question.sockaddr, question.source)
        assert not outcome & SendOutcome.DROPPED
        answers = {asker.must_receive().sockaddr for _ in range(2)}
        assert answers == {at("10.1.0.1"), at("10.1.0.2")}, "a host receives its own broadcast too"
