"""Inputs that must not stop, block or confuse the engine: odd trains, full queues, refusals, and concurrent threads."""

from __future__ import annotations

import select
import struct
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import make_engine
from tests.support.packets import UDP, ipv4, ipv6, udp, udp_datagram, uso
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    OUR_KEY,
    carry,
    connected,
    handshake_message,
    params,
    sides,
)
from wyrmhole.datapath.train import MAX_TRAINS
from wyrmhole.engine.contract import Engine
from wyrmhole.net.bind import SendOutcome
from wyrmhole.net.memory_bind import MemoryBind, MemoryNetwork
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.protocol.data_plane import Active, KeyWanted, Roamed
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

# Trains


@pytest.mark.parametrize("size", [1, 3, 4, 16, 20, 31])
def test_a_train_of_too_short_datagrams_is_dropped(size: int) -> None:
    """The first bytes name a known key, and the whole train would be long enough for a message."""
    _, b = connected()
    header = struct.pack("<IIQ", 4, 20, 7) + bytes(15)
    b.network(header[:size] * 8, A_OUTER, segment=size)
    assert sum(b.drops().values()) == 8
    assert b.drops().keys() <= {DropReason.TOO_SHORT, DropReason.WRONG_LENGTH}


def test_a_train_may_hold_a_handshake_message_and_data() -> None:
    """The kernel appends a shorter datagram to the previous one, whatever their content."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    message = handshake_message()
    (data,) = a.take()
    assert len(data) < len(message)
    b.network(message + data, A_OUTER, segment=len(message))
    assert b.delivered == [ipv4(A_INNER, B_INNER)]
    assert b.drops() == {}


def test_interleaved_packets_to_many_peers_keep_their_order() -> None:
    """There are more peers than trains that can be open at once (I24)."""
    a, _ = connected()
    count = MAX_TRAINS + 3
    for number in range(2, count + 2):
        a.engine.add_peer(number)
        a.engine.insert_allowed_ip(number, Prefix(4, 0x0B000000 + number, 32))
        a.engine.set_endpoint(number, Endpoint("198.51.100.1", number))
        a.engine.install_keypair(number, params(100 + number, 200 + number, initiator=True))
    packets = [ipv4(A_INNER, f"11.0.0.{number}", b"x" * 16) for number in range(2, count + 2)]
    a.tunnel(packets[0], packets[0])
    a.sent.clear()
    a.tunnel(*packets * 3)
    for number in range(2, count + 2):
        counters = [struct.unpack_from("<IIQ", data)[2] for sockaddr, data, _, _ in a.sent if sockaddr[1] == number]
        assert len(counters) == 3
        assert counters == sorted(counters)


def test_the_largest_possible_packet_becomes_one_datagram() -> None:
    """Whether it can be sent is up to the socket."""
    a, _ = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(65_515)))
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert [len(data) for data in a.take()] == [65_535 + 9 + 32, 64]
    a.bind.outcome = SendOutcome.DROPPED
    a.tunnel(ipv4(A_INNER, B_INNER, bytes(65_515)))
    assert a.drops() == {DropReason.SEND_FAILED: 1}


def test_a_lost_train_counts_all_its_packets_and_no_bytes() -> None:
    a, _ = connected()
    packets = [ipv4(A_INNER, B_INNER)] * 5
    a.tunnel(*packets)
    before = a.engine.counters(1).tx_bytes
    a.bind.outcome = SendOutcome.DROPPED
    a.tunnel(*packets)
    assert a.drops() == {DropReason.SEND_FAILED: 5}
    assert a.engine.counters(1).tx_bytes == before


def test_a_super_packet_without_a_route_gets_one_icmp_error() -> None:
    """Each of its packets is counted as dropped (M46)."""
    a, _ = connected()
    a.tun.inject(uso(udp(A_INNER, "10.9.9.9", (1, 2), bytes(400)), 100))
    a.engine.turn()
    assert a.drops() == {DropReason.NO_ROUTE: 4}
    assert len(a.delivered) == 1


def test_staged_packets_keep_their_own_ecn() -> None:
    """Each outer header gets the ECN field of its own packet (M48)."""
    a, _ = sides()
    a.tunnel(*[ipv4(A_INNER, B_INNER, tos=tos) for tos in (0, 1, 2, 3, 3)])
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    assert [tos for _, _, _, tos in a.sent] == [0, 1, 2, 3, 3]


def test_a_route_loop_is_detected_for_link_local_endpoints() -> None:
    """The kernel appends the interface's name to such a sender's address."""
    a, b = connected()
    a.engine.insert_allowed_ip(1, Prefix.parse("::/0"))
    b.tunnel(ipv4(B_INNER, A_INNER))
    a.bind.arrive(b.take()[0], ("fe80::2%eth0", 51820, 0, 3))
    a.engine.turn()
    a.tunnel(ipv6("fe80::1", "fe80::2", udp_datagram((51820, 51820), b""), protocol=UDP))
    assert a.drops() == {DropReason.ROUTE_LOOP: 1}


def test_a_super_packet_is_not_staged_without_a_private_key() -> None:
    a, _ = connected()
    a.engine.set_mac1_key(None)
    a.tun.inject(uso(udp(A_INNER, B_INNER, (1, 2), bytes(400)), 100))
    a.engine.turn()
    assert a.drops() == {DropReason.NO_PRIVATE_KEY: 4}


def test_a_lone_packet_leaves_before_the_next_tun_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the next read would add latency to every ping."""
    a, _ = connected()
    sent_before_read: list[int] = []
    read = a.tun.read_into

    def read_into(buffer: bytearray | memoryview) -> int:
        sent_before_read.append(len(a.sent))
        return read(buffer)

    monkeypatch.setattr(a.tun, "read_into", read_into)
    a.take()
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert sent_before_read == [0, 1]


# Marks and reports


def test_staged_data_of_a_responder_expects_an_answer() -> None:
    """The packet that confirms the key arrived before the staged data left, so it does not answer it (M34)."""
    a, b = sides()
    b.tunnel(ipv4(B_INNER, A_INNER))
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    b.now += SECOND
    carry(a, b)
    assert len(b.take()) == 1
    assert b.engine.marks(1).data_sent_since == b.now
    assert Active(1) in b.reports()


def test_endpoint_changes_are_merged_into_one_report() -> None:
    """An attacker who redirects packets cannot fill the report queue; only the latest endpoint is reported."""
    a, b = connected()
    for port in range(1, 50):
        a.tunnel(ipv4(A_INNER, B_INNER))
        b.network(a.take()[0], Endpoint("203.0.113.9", port))
    assert [report for report in b.reports() if isinstance(report, Roamed)] == [Roamed(1, Endpoint("203.0.113.9", 49))]
    a.tunnel(ipv4(A_INNER, B_INNER))
    b.network(a.take()[0], A_OUTER)
    assert Roamed(1, A_OUTER) in b.reports()


def test_a_declined_rekey_is_requested_again() -> None:
    """The protocol may decline (`expect_key`); the next packet then repeats the request (M26, M27)."""
    a, _ = connected()
    a.now += 121 * SECOND
    for _ in range(2):
        a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports().count(KeyWanted(1, renews=10)) == 1
    a.engine.expect_key(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    assert a.reports().count(KeyWanted(1, renews=10)) == 1


# The engine's life cycle


def started(tun: ListTun) -> Engine:
    engine: Engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    engine.attach_tun(tun)
    return engine


def test_a_closed_engine_ignores_every_call() -> None:
    """Its descriptors are closed, and other files may have their numbers."""
    engine = started(ListTun())
    engine.close()
    engine.add_peer(1)
    engine.send_keepalive(1)
    engine.attach_bind(ListBind(lambda *datagram: None), 1)
    engine.detach_bind()
    engine.set_mtu(1)
    assert engine.poll_reports() == []
    assert engine.counters(1).tx_bytes == 0


class StuckTun(ListTun):
    """A TUN that blocks the engine's thread until `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def read_into(self, buffer: bytearray | memoryview) -> int:
        self.entered.set()
        assert self.release.wait(30)
        return super().read_into(buffer)


def wait_until(engine: Engine, event: threading.Event) -> None:
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    end = time.monotonic() + 10
    while not event.is_set():
        assert time.monotonic() < end, "the event was not set within 10 s"
        # An engine whose thread sets the event itself never makes the descriptor readable.
        poll.poll(1)
        engine.poll_reports()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stuck_worker_is_noticed(workers: int) -> None:
    """A watchdog relies on `when_applied`, which calls back only after every worker has run."""
    engine: Engine = make_engine(lambda: 1000 * SECOND, threaded=True, workers=workers)
    tun, applied = StuckTun(), [threading.Event() for _ in range(3)]
    engine.attach_tun(tun)
    engine.when_applied(applied[0].set)
    wait_until(engine, applied[0])
    tun.inject(PLAIN)
    assert tun.entered.wait(10)
    for event in applied[1:]:
        engine.when_applied(event.set)
    engine.poll_reports()
    assert [event.is_set() for event in applied] == [True, False, False]
    tun.release.set()
    for event in applied:
        wait_until(engine, event)
    engine.close()


def test_without_threads_commands_are_applied_at_once() -> None:
    engine: Engine = make_engine(lambda: 1000 * SECOND)
    calls: list[str] = []
    engine.when_applied(lambda: calls.append("open"))
    engine.close()
    engine.when_applied(lambda: calls.append("closed"))
    assert calls == ["open"]


def test_a_command_is_in_effect_for_the_packets_after_it() -> None:
    """The contract promises that each command takes effect before the next batch of packets."""
    seen: list[bytes] = []
    arrived = threading.Event()

    def transmit(*datagram: object) -> None:
        seen.append(datagram[1])  # type: ignore[arg-type]
        arrived.set()

    tun = ListTun()
    engine = started(tun)
    engine.set_mac1_key(mac1_key(OUR_KEY))
    engine.attach_bind(ListBind(transmit), 1)
    for number in range(1, 400):
        engine.add_peer(number)
        engine.insert_allowed_ip(number, Prefix.parse(f"{B_INNER}/32"))
        engine.set_endpoint(number, B_OUTER)
        engine.install_keypair(number, params(2 * number, 2 * number + 1, initiator=True))
    engine.set_mtu(1420)
    arrived.clear()
    tun.inject(PLAIN + ipv4(A_INNER, B_INNER))
    assert arrived.wait(10)
    assert struct.unpack_from("<II", seen[-1]) == (4, 2 * 399 + 1)
    engine.close()


# Two engines with their threads


class CountingTun(MemoryTun):
    """Sets `complete` when `wanted` packets have been delivered."""

    def __init__(self, name: str, wanted: int) -> None:
        super().__init__(name, limit=100_000)
        self.wanted = wanted
        self.complete = threading.Event()

    def write(self, parts: Sequence[Buffer]) -> bool:
        accepted = super().write(parts)
        if len(self._delivered) >= self.wanted:
            self.complete.set()
        return accepted


def running(tun: MemoryTun, bind: MemoryBind, other_inner: str, other: Endpoint, *, initiator: bool) -> Engine:
    engine: Engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    engine.set_mac1_key(mac1_key(OUR_KEY))
    engine.attach_tun(tun)
    engine.attach_bind(bind, bind.open(51820))
    engine.add_peer(1)
    engine.insert_allowed_ip(1, Prefix.parse(f"{other_inner}/32"))
    engine.set_endpoint(1, other)
    if not initiator:
        engine.install_keypair(1, params(20, 10, initiator=False))
    engine.set_mtu(1420)
    return engine


def test_two_running_engines_rekey_without_losing_packets() -> None:
    """Traffic flows in both directions, and no packet is lost, duplicated or reordered (M36)."""
    network = MemoryNetwork(queue_limit=100_000)
    tun_a, tun_b = CountingTun("a", 600), CountingTun("b", 600)
    b = running(tun_b, network.bind(B_OUTER.host), A_INNER, A_OUTER, initiator=False)
    a = running(tun_a, network.bind(A_OUTER.host), B_INNER, B_OUTER, initiator=True)
    a.install_keypair(1, params(10, 20, initiator=True))
    a.commit()
    there = [ipv4(A_INNER, B_INNER, b"%03d" % number + bytes(number % 97)) for number in range(600)]
    back = [ipv4(B_INNER, A_INNER, b"%03d" % number + bytes(number % 89)) for number in range(600)]
    for number in range(600):
        if number == 300:
            b.install_keypair(1, params(21, 11, initiator=False))
            b.set_mtu(1420)  # Returns when the engine has executed it and all earlier commands.
            a.install_keypair(1, params(11, 21, initiator=True))
            a.commit()
        tun_a.inject(there[number])
        tun_b.inject(back[number])
    assert tun_a.complete.wait(20)
    assert tun_b.complete.wait(20)
    a.close()
    b.close()
    assert tun_b.delivered == there
    assert tun_a.delivered == back
    assert (a.drops(), b.drops()) == ({}, {})


# Arbitrary input


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[bytes, int]]:
    """Datagrams and trains, genuine, damaged, truncated or random, with any segment size."""
    a, _ = connected()
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6))
    a.tunnel(*[ipv4(A_INNER, B_INNER, bytes(size)) for size in sizes])
    pieces = [*a.take(), handshake_message(), struct.pack("<IIQ", 4, 20, 1) + bytes(16), draw(st.binary(max_size=80))]
    chosen = draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=6))
    trains = []
    while chosen:
        count = draw(st.integers(1, len(chosen)))
        data = mutated(draw, b"".join(chosen[:count]) or b"\0")
        chosen = chosen[count:]
        trains.append((data, draw(st.sampled_from([0, 1, 20, 32, 64, 96, 148, 70_000]))))
    return trains


@settings(max_examples=150, deadline=None)
@given(arrivals())
def test_every_datagram_is_delivered_reported_or_counted(trains: list[tuple[bytes, int]]) -> None:
    """No exception, no answer, and the counters add up, keepalives aside (M50, I17, I30)."""
    _, b = connected()
    b.engine.poll_reports(10_000)
    total = 0
    for data, segment in trains:
        total += -(-len(data) // segment) if 0 < segment < len(data) else 1
        b.network(data, A_OUTER, segment=segment)
    reported = sum(type(report).__name__ == "HandshakeDatagram" for report in b.reports())
    assert len(b.delivered) + reported + sum(b.drops().values()) == total
    assert b.take() == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=8))
def test_every_tun_frame_is_sent_answered_or_counted(frames: list[tuple[bytes, int, int]]) -> None:
    """Frames include invalid virtio headers and truncated packets."""
    a, _ = connected()
    for header, size, cut in frames:
        packet = udp(A_INNER, B_INNER, (1, 2), bytes(size))
        a.tun.inject((header.ljust(10, b"\0")[:10] + packet)[: -cut or None] or b"\0")
    for _ in range(3):
        a.engine.turn()
    counted = len(a.take()) + sum(a.drops().values())
    assert counted >= len(frames)
    assert a.drops().keys() <= {DropReason.MALFORMED_FRAME, DropReason.NO_ROUTE}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 3)), min_size=1, max_size=150))
def test_order_content_and_train_shape_hold_for_any_sizes(packets: list[tuple[int, int]]) -> None:
    """Equal sizes except for the last, at most 64 datagrams and 65,507 bytes, and one ECN value per train (I2, I4)."""
    a, b = connected()
    a.bind.trains.clear()
    whole = [ipv4(A_INNER, B_INNER, bytes((n & 255,)) * size, tos=ecn) for n, (size, ecn) in enumerate(packets)]
    a.tunnel(*whole)
    for _ in range(len(whole)):
        a.engine.turn()
    for total, segment in a.bind.trains:
        assert total <= 65_507
        assert not segment or (total > segment and -(-total // segment) <= 64)
    carry(a, b)
    assert b.delivered == whole
