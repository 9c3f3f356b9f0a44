"""The memory twin of a bind fulfils the same contract as the real one."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Iterator

import pytest

from wyrmhole.net import sticky
from wyrmhole.net.bind import Bind, SendOutcome
from wyrmhole.net.memory_bind import MemoryBind, MemoryNetwork
from wyrmhole.wire.datagram import Received


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork(queue_limit=4)


@pytest.fixture
def a(network: MemoryNetwork) -> Iterator[MemoryBind]:
    bind = network.bind("192.0.2.1", "2001:db8::1")
    bind.open(1)
    yield bind
    bind.close()


@pytest.fixture
def b(network: MemoryNetwork) -> Iterator[MemoryBind]:
    bind = network.bind("192.0.2.2", "192.0.2.3", "2001:db8::2")
    bind.open(2)
    yield bind
    bind.close()


def receive(bind: MemoryBind) -> Received | None:
    return bind.receive(bind.filenos()[0])


def must_receive(bind: MemoryBind) -> Received:
    received = receive(bind)
    assert received is not None
    return received


def readable(bind: MemoryBind) -> bool:
    poller = select.poll()
    poller.register(bind.filenos()[0], select.POLLIN)
    return bool(poller.poll(0))


def test_the_memory_bind_implements_bind(a: MemoryBind) -> None:
    as_interface: Bind = a
    assert as_interface.send(b"x", 0, ("192.0.2.9", 9), None) == SendOutcome.SENT


def test_datagrams_arrive_in_order(a: MemoryBind, b: MemoryBind) -> None:
    assert receive(b) is None and not readable(b)
    a.send(b"one", 0, ("192.0.2.2", 2), None, tos=3)
    a.send([b"t", b"wo"], 0, ("2001:db8::2", 2, 0, 0), None)
    assert readable(b)
    first = must_receive(b)
    assert readable(b)
    second = must_receive(b)
    assert (bytes(first.view), first.sockaddr, first.tos) == (b"one", ("192.0.2.1", 1), 3)
    assert (bytes(second.view), second.sockaddr) == (b"two", ("2001:db8::1", 1, 0, 0))
    assert receive(b) is None and not readable(b)


def test_answers_leave_from_the_address_that_was_contacted(a: MemoryBind, b: MemoryBind) -> None:
    a.send(b"question", 0, ("192.0.2.3", 2), None)
    question = must_receive(b)
    assert question.source is not None and b.source_is_valid(question.sockaddr, question.source)
    b.send(b"answer", 0, question.sockaddr, question.source)
    assert must_receive(a).sockaddr == ("192.0.2.3", 2)


def test_trains_are_kept_whole_with_gro_and_split_without(network: MemoryNetwork, a: MemoryBind, b: MemoryBind) -> None:
    plain = network.bind("192.0.2.4", gro=False)
    plain.open(4)
    a.send(b"aabbc", 2, ("192.0.2.2", 2), None)
    assert must_receive(b).segment_size == 2
    a.send(b"aa", 2, ("192.0.2.2", 2), None)
    assert must_receive(b).segment_size == 0
    a.send(b"aabbc", 2, ("192.0.2.4", 4), None)
    assert [bytes(must_receive(plain).view) for _ in range(3)] == [b"aa", b"bb", b"c"]
    plain.close()


def test_full_queues_and_unreachable_hosts_drop_datagrams(network: MemoryNetwork, a: MemoryBind, b: MemoryBind) -> None:
    for _ in range(6):
        assert a.send(b"x", 0, ("192.0.2.2", 2), None) == SendOutcome.SENT
    a.send(b"x", 0, ("192.0.2.99", 2), None)
    assert network.lost == 3
    assert len([None for _ in range(6) if receive(b)]) == 4


def test_a_filter_chooses_the_datagrams_to_lose(network: MemoryNetwork, a: MemoryBind, b: MemoryBind) -> None:
    network.carries = lambda datagram: datagram.data != b"bad"
    a.send(b"bad", 0, ("192.0.2.2", 2), None)
    a.send(b"good", 0, ("192.0.2.2", 2), None)
    assert bytes(must_receive(b).view) == b"good"


def test_a_host_that_moves_sends_from_its_new_address(a: MemoryBind, b: MemoryBind) -> None:
    old = sticky.emit_source("192.0.2.1", 1)
    a.move("198.51.100.1")
    assert a.take_stale_sources() and not a.take_stale_sources()
    assert not a.source_is_valid(("192.0.2.2", 2), old)
    assert a.send(b"x", 0, ("192.0.2.2", 2), old) == SendOutcome.SOURCE_REJECTED
    assert must_receive(b).sockaddr == ("198.51.100.1", 1)
    assert a.send(b"x", 0, ("2001:db8::2", 2, 0, 0), None) == SendOutcome.DROPPED
    b.send(b"y", 0, ("198.51.100.1", 1), None)
    assert bytes(must_receive(a).view) == b"y"


def test_ports_are_exclusive_and_port_0_picks_a_free_one(network: MemoryNetwork, b: MemoryBind) -> None:
    other = network.bind("192.0.2.3")
    with pytest.raises(OSError) as caught:
        other.open(2)
    assert caught.value.errno == errno.EADDRINUSE
    port = other.open(0)
    assert port >= 49_152
    other.close()
    other.close()
    assert other.filenos() == ()
    assert other.open(port) == port
    other.close()


def test_a_closed_bind_neither_sends_nor_receives(a: MemoryBind, b: MemoryBind) -> None:
    fileno = b.filenos()[0]
    b.close()
    a.send(b"x", 0, ("192.0.2.2", 2), None)
    assert b.receive(fileno) is None
    assert b.send(b"x", 0, ("192.0.2.1", 1), None) == SendOutcome.DROPPED


def test_a_polling_thread_is_woken(a: MemoryBind, b: MemoryBind) -> None:
    got: list[bytes] = []

    def serve() -> None:
        poller = select.poll()
        poller.register(b.filenos()[0], select.POLLIN)
        while len(got) < 100 and poller.poll(5000):
            while received := receive(b):
                got.append(bytes(received.view))
                b.send(b"ack", 0, received.sockaddr, received.source)

    thread = threading.Thread(target=serve)
    thread.start()
    poller = select.poll()
    poller.register(a.filenos()[0], select.POLLIN)
    for number in range(100):
        a.send(str(number).encode(), 0, ("192.0.2.2", 2), None)
        assert poller.poll(5000)
        assert bytes(must_receive(a).view) == b"ack"
    thread.join()
    assert got == [str(number).encode() for number in range(100)]
