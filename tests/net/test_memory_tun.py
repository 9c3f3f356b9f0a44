"""The memory twin of a TUN fulfils the same contract as the real one."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator

import pytest

from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.net.tun import Tun, TunEvent, TunOffloads

HEADER = bytes(10)


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    tun = MemoryTun(limit=3)
    yield tun
    tun.close()


def readable(fileno: int) -> bool:
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    return bool(poller.poll(0))


def test_the_memory_tun_implements_tun(tun: MemoryTun) -> None:
    as_interface: Tun = tun
    assert as_interface.name == "mem0" and as_interface.mtu == 1420
    assert as_interface.offloads == TunOffloads(tso=False, uso=False)


def test_injected_packets_are_read_as_frames_in_order(tun: MemoryTun) -> None:
    buffer = bytearray(100)
    assert tun.read_into(buffer) == 0 and not readable(tun.fileno())
    assert tun.inject(b"one") and tun.inject(b"three")
    assert readable(tun.fileno())
    assert buffer[: tun.read_into(buffer)] == HEADER + b"one"
    assert readable(tun.fileno())
    assert buffer[: tun.read_into(memoryview(buffer))] == HEADER + b"three"
    assert not readable(tun.fileno())


def test_written_frames_are_delivered(tun: MemoryTun) -> None:
    assert tun.write([HEADER, b"ab", memoryview(b"c")])
    assert tun.write([HEADER + b"d"])
    assert tun.delivered == [b"abc", b"d"]
    assert tun.pop_frame() == HEADER + b"abc"
    assert tun.pop() == b"d"
    with pytest.raises(IndexError):
        tun.pop()


def test_both_queues_are_bounded(tun: MemoryTun) -> None:
    assert [tun.inject(b"x") for _ in range(4)] == [True, True, True, False]
    assert [tun.write([HEADER, b"x"]) for _ in range(4)] == [True, True, True, False]
    assert tun.lost == 2


@pytest.mark.parametrize(
    ("gso_type", "offloads", "accepted"),
    [
        (1, TunOffloads(tso=False, uso=True), False),
        (4, TunOffloads(tso=True, uso=False), True),
        (0x81, TunOffloads(tso=True, uso=False), True),
        (5, TunOffloads(tso=True, uso=False), False),
        (5, TunOffloads(tso=False, uso=True), True),
    ],
)
def test_super_packets_need_their_offload(tun: MemoryTun, gso_type: int, offloads: TunOffloads, accepted: bool) -> None:
    frame = [bytes([1, gso_type]) + bytes(8), b"x"]
    assert tun.write(frame) is False
    tun.set_offloads(offloads)
    assert tun.write(frame) is accepted


def test_up_down_and_mtu_are_reported_once(tun: MemoryTun) -> None:
    assert readable(tun.events_fileno())
    assert tun.poll_events() == [TunEvent.UP]
    assert tun.poll_events() == [] and not readable(tun.events_fileno())
    tun.inject(b"x")
    tun.set_up(False)
    tun.set_up(False)
    tun.set_mtu(1280)
    assert readable(tun.events_fileno())
    assert tun.poll_events() == [TunEvent.DOWN, TunEvent.MTU]
    assert tun.mtu == 1280
    assert tun.read_into(bytearray(100)) == 0, "going down drops the packet"
    assert not tun.inject(b"x") and not tun.write([HEADER, b"x"])
    tun.set_up(True)
    assert tun.poll_events() == [TunEvent.UP]
    assert tun.inject(b"x") and tun.write([HEADER, b"x"])


def test_deletion_is_an_event_and_makes_reading_fail(tun: MemoryTun) -> None:
    tun.poll_events()
    tun.delete()
    tun.delete()
    assert tun.poll_events() == [TunEvent.DELETED]
    assert readable(tun.fileno())
    with pytest.raises(OSError) as caught:
        tun.read_into(bytearray(100))
    assert caught.value.errno == errno.EBADFD
    assert not tun.write([HEADER, b"x"]) and not tun.inject(b"x")


def test_close_can_be_repeated(tun: MemoryTun) -> None:
    tun.close()
    tun.close()
    assert not tun.write([HEADER, b"x"]) and not tun.inject(b"x")
