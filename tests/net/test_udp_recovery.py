"""Recovery from each error of a UDP socket: no datagram is lost needlessly, duplicated or reordered."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.scripted import ANY_SOCKADDR, Attempt, Script, ScriptedSocket
from wyrmhole.net import sticky, udp_offload
from wyrmhole.net.bind import SendOutcome, doubts_trains
from wyrmhole.net.udp_bind import UdpBind

SOURCE = sticky.emit_source("192.0.2.77", 5)
SIZE = 1000
TRAIN = b"".join(bytes([n]) * SIZE for n in range(10)) + b"tail"
DATAGRAMS = [TRAIN[start : start + SIZE] for start in range(0, len(TRAIN), SIZE)]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def bind(script: Script) -> Iterator[UdpBind]:
    bind = UdpBind(socket_factory=script.factory)
    bind.open(0)
    yield bind
    bind.close()


def fail_trains(number: int) -> Script:
    return Script(judge=lambda attempt: number if attempt.segment_size else 0)


def opened(script: Script) -> UdpBind:
    bind = UdpBind(socket_factory=script.factory)
    bind.open(0)
    return bind


def test_a_train_leaves_in_one_call(bind: UdpBind, script: Script) -> None:
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert len(script.attempts) == 1
    assert script.datagrams == DATAGRAMS
    assert bind.counters.sent == len(DATAGRAMS)


def test_separate_buffers_form_one_train(bind: UdpBind, script: Script) -> None:
    parts: list[bytes | memoryview] = [TRAIN[:1500], memoryview(TRAIN)[1500:]]
    assert bind.send(parts, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert script.datagrams == DATAGRAMS


def test_a_train_of_one_datagram_is_sent_without_udp_segment(bind: UdpBind, script: Script) -> None:
    bind.send(b"x" * SIZE, SIZE, ANY_SOCKADDR, None)
    bind.send(b"x" * 7, SIZE, ANY_SOCKADDR, None)
    assert [attempt.segment_size for attempt in script.sent] == [0, 0]


def test_a_split_train_s_last_datagram_has_no_udp_segment(bind: UdpBind, script: Script) -> None:
    """PPPoE drivers fail on UDP_SEGMENT with a single datagram."""
    bind.send(bytes(100) * 129, 100, ANY_SOCKADDR, None)
    bind.send(bytes(1452) * 46, 1452, ANY_SOCKADDR, None)
    sizes = [(len(attempt.data), attempt.segment_size) for attempt in script.sent]
    assert sizes == [(12_800, 100), (100, 0), (45 * 1452, 1452), (1452, 0)]


def test_udp_segment_is_not_used_on_kernels_without_it() -> None:
    """Linux before 4.18 ignores the control message, and would send the whole train as one datagram."""

    class OldKernel(ScriptedSocket):
        def getsockopt(self, level: int, option: int, *length: int) -> Any:
            if (level, option) == (socket.IPPROTO_UDP, udp_offload.UDP_SEGMENT):
                raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
            return super().getsockopt(level, option, *length)

    script = Script()
    bind = UdpBind(socket_factory=lambda *arguments: OldKernel(script, *arguments))
    bind.open(0)
    assert not any(sock.sends_trains for pair in bind.kernel_sockets() for sock in pair), (
        "the native engine would use it"
    )
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert [(attempt.data, attempt.segment_size) for attempt in script.attempts] == [(it, 0) for it in DATAGRAMS]
    bind.close()


def test_the_bind_reports_a_suspect_kernel_and_still_offers_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, suspect in (("7.0.3-generic", True), ("6.18.44", False)):
        monkeypatch.setattr(os, "uname", lambda release=release: SimpleNamespace(release=release))
        script = Script()
        bind = opened(script)
        assert doubts_trains(bind) is suspect
        bind.send(TRAIN, SIZE, ANY_SOCKADDR, None)
        assert len(script.attempts) == 1
        bind.close()


def test_a_train_above_the_byte_limit_is_split_between_datagrams(bind: UdpBind, script: Script) -> None:
    train = bytes(1452) * 47
    assert bind.send(train, 1452, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert [len(attempt.data) // 1452 for attempt in script.sent] == [45, 2]


def test_without_gso_trains_are_sent_as_single_datagrams(script: Script) -> None:
    bind = UdpBind(gso=False, socket_factory=script.factory)
    bind.open(0)
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert [attempt.data for attempt in script.sent] == DATAGRAMS
    assert all(attempt.segment_size == 0 for attempt in script.attempts)
    bind.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_after_a_refused_train_only_single_datagrams_are_sent(number: int) -> None:
    """The refused train is sent again as single datagrams, and no further train is tried."""
    script = fail_trains(number)
    bind = opened(script)
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, SOURCE) == SendOutcome.SENT
    assert script.datagrams == DATAGRAMS
    assert bind.counters.gso_fallbacks == 1
    script.attempts.clear()
    bind.send(TRAIN, SIZE, ("192.0.2.2", 9), SOURCE)
    assert [attempt.segment_size for attempt in script.attempts] == [0] * len(DATAGRAMS)
    assert script.datagrams == DATAGRAMS * 2
    bind.close()


def test_a_refusal_in_one_family_does_not_affect_the_other() -> None:
    """Each socket remembers its own refusal."""
    script = fail_trains(errno.EIO)
    bind = opened(script)
    bind.send(TRAIN, SIZE, ANY_SOCKADDR, None)
    script.judge = lambda attempt: 0
    script.attempts.clear()
    bind.send(TRAIN, SIZE, ("2001:db8::1", 9, 0, 0), None)
    assert len(script.attempts) == 1
    bind.close()


def test_parts_of_a_split_train_are_not_sent_twice(script: Script) -> None:
    def judge(attempt: Attempt) -> int:
        return errno.EIO if attempt.segment_size and script.sent else 0

    script.judge = judge
    bind = opened(script)
    train = b"".join(n.to_bytes(2, "big") * 726 for n in range(100))
    assert bind.send(train, 1452, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert b"".join(script.datagrams) == train
    assert len(script.sent) == 1 + 55
    bind.close()


def test_an_oversized_train_affects_only_its_destination(script: Script) -> None:
    """After EMSGSIZE, trains to this destination are sent as single datagrams, which may be fragmented."""
    script.judge = lambda attempt: errno.EMSGSIZE if attempt.segment_size and attempt.sockaddr == ANY_SOCKADDR else 0
    bind = opened(script)
    for _ in range(2):
        assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert script.datagrams == DATAGRAMS * 2
    assert [attempt.segment_size for attempt in script.attempts].count(SIZE) == 1
    script.attempts.clear()
    bind.send(TRAIN, SIZE, ("192.0.2.2", 9), None)
    assert len(script.attempts) == 1
    assert bind.counters.gso_fallbacks == 0
    bind.close()


def test_smaller_trains_to_an_oversized_destination_stay_whole(script: Script) -> None:
    script.judge = lambda attempt: errno.EMSGSIZE if attempt.segment_size > 900 else 0
    bind = opened(script)
    bind.send(TRAIN, SIZE, ANY_SOCKADDR, None)
    script.attempts.clear()
    bind.send(TRAIN, 500, ANY_SOCKADDR, None)
    assert [attempt.segment_size for attempt in script.attempts] == [500]
    bind.close()


def test_whole_trains_are_tried_again_on_an_oversized_path(script: Script) -> None:
    script.judge = lambda attempt: errno.EMSGSIZE if attempt.segment_size else 0
    bind = opened(script)
    bind.send(TRAIN, SIZE, ANY_SOCKADDR, None)
    script.judge = lambda attempt: 0
    for _ in range(1001):
        bind.send(TRAIN, SIZE, ANY_SOCKADDR, None)
    assert script.attempts[-1].segment_size == SIZE
    bind.close()


def test_the_memory_of_oversized_destinations_is_bounded() -> None:
    bind = opened(fail_trains(errno.EMSGSIZE))
    for number in range(3000):
        bind.send(TRAIN, SIZE, (f"198.18.{number >> 8}.{number & 255}", 9), None)
    assert bind._v4 is not None
    assert len(bind._v4.oversized) <= 1024
    bind.close()


def test_an_older_kernel_s_limit_of_64_datagrams_is_detected(script: Script) -> None:
    script.judge = lambda attempt: errno.EINVAL if len(attempt.datagrams) > 64 else 0
    bind = opened(script)
    train = b"".join(bytes([n]) * 100 for n in range(128))
    assert bind.send(train, 100, ANY_SOCKADDR, SOURCE) == SendOutcome.SENT
    assert b"".join(script.datagrams) == train
    assert [len(attempt.datagrams) for attempt in script.sent] == [64, 64]
    bind.send(train, 100, ANY_SOCKADDR, SOURCE)
    assert [len(attempt.datagrams) for attempt in script.sent[2:]] == [64, 64]
    assert bind.counters.gso_fallbacks == 0
    bind.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH])
@pytest.mark.parametrize("size", [0, SIZE])
def test_an_invalid_source_is_dropped_and_reported(number: int, size: int) -> None:
    """The datagrams are sent from another source."""
    script = Script(judge=lambda attempt: number if attempt.source is not None else 0)
    bind = opened(script)
    data = TRAIN if size else b"one"
    assert bind.send(data, size, ANY_SOCKADDR, SOURCE) == SendOutcome.SOURCE_REJECTED
    assert b"".join(script.datagrams) == data
    assert bind.counters.sources_rejected == 1
    bind.close()


def test_a_missing_route_does_not_reject_the_source() -> None:
    """If ENETUNREACH persists without the source, the source is kept."""
    bind = opened(Script(judge=lambda attempt: errno.ENETUNREACH))
    assert bind.send(b"one", 0, ANY_SOCKADDR, SOURCE) == SendOutcome.DROPPED
    assert bind.counters.dropped == {errno.ENETUNREACH: 1}
    assert bind.counters.sources_rejected == 0
    bind.close()


def test_a_bad_source_and_a_refused_train_lose_no_datagram() -> None:
    script = Script(judge=lambda attempt: errno.EINVAL if attempt.segment_size or attempt.source is not None else 0)
    bind = opened(script)
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, SOURCE) == SendOutcome.SOURCE_REJECTED
    assert script.datagrams == DATAGRAMS
    pinned = [attempt for attempt in script.attempts if attempt.source is not None]
    assert len(pinned) == 2, "only the train and its first datagram are tried with the source"
    bind.close()


def test_a_pending_icmp_error_does_not_lose_the_datagram(script: Script) -> None:
    """ECONNREFUSED concerns an earlier datagram, so this one is sent again."""
    pending = [errno.ECONNREFUSED]
    script.judge = lambda attempt: pending.pop() if pending else 0
    bind = opened(script)
    assert bind.send(b"one", 0, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert script.datagrams == [b"one"]
    bind.close()


def test_a_send_waits_for_a_full_socket_buffer(script: Script) -> None:
    """EAGAIN delays the send until the buffer has space."""
    pending = [errno.EAGAIN]
    script.judge = lambda attempt: pending.pop() if pending else 0
    bind = opened(script)
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.SENT
    assert script.datagrams == DATAGRAMS
    bind.close()


def test_the_wait_of_one_send_is_limited() -> None:
    """EAGAIN starts one wait per train, not one per datagram."""
    script = Script(judge=lambda attempt: errno.EAGAIN)
    bind = UdpBind(gso=False, socket_factory=script.factory)
    bind.open(0)
    assert bind.send(TRAIN, SIZE, ANY_SOCKADDR, None) == SendOutcome.DROPPED
    assert len(script.attempts) == 10 + len(DATAGRAMS)
    bind.close()


@pytest.mark.parametrize(
    "number",
    [
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EPERM,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.EADDRNOTAVAIL,
        errno.EINVAL,
        errno.EMSGSIZE,
        errno.EIO,
        errno.EBADF,
    ],
)
@pytest.mark.parametrize("size", [0, SIZE])
@pytest.mark.parametrize("source", [None, SOURCE])
def test_a_persistent_error_is_counted_and_affects_one_send(number: int, size: int, source: bytes | None) -> None:
    """It drops only the affected part, after a bounded number of attempts; the next send works as before."""
    script = Script(judge=lambda attempt: number)
    bind = opened(script)
    data = TRAIN if size else b"one"
    count = len(DATAGRAMS) if size else 1
    assert bind.send(data, size, ANY_SOCKADDR, source) == SendOutcome.DROPPED
    assert bind.counters.dropped == {number: count}
    assert bind.counters.sent == 0
    assert bind.counters.gso_fallbacks == (1 if size and number == errno.EIO else 0)
    assert len(script.attempts) <= 13 * (count + 1)
    script.judge = lambda attempt: 0
    assert bind.send(data, size, ANY_SOCKADDR, source) == SendOutcome.SENT
    assert b"".join(script.datagrams) == data
    bind.close()


def test_a_source_of_the_other_family_is_left_out(bind: UdpBind, script: Script) -> None:
    bind.send(b"one", 0, ANY_SOCKADDR, sticky.emit_source("2001:db8::1", 0))
    bind.send(b"two", 0, ("2001:db8::2", 9, 0, 0), SOURCE)
    assert [attempt.source for attempt in script.sent] == [None, None]


def test_the_control_message_cache_is_bounded(bind: UdpBind) -> None:
    for number in range(10_000):
        bind.send(b"x", 0, ANY_SOCKADDR, sticky.emit_source("192.0.2.1", number))
    assert bind._v4 is not None
    assert len(bind._v4.controls) <= 4096


def test_pending_errors_do_not_hide_the_next_datagram(bind: UdpBind, script: Script) -> None:
    """An ICMP error is consumed, and the socket is kept."""
    port = bind._v4.port if bind._v4 else 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", port))
    script.receiving = [errno.ECONNREFUSED, errno.EHOSTUNREACH]
    received = bind.receive(bind.filenos()[0])
    assert received is not None and bytes(received.view) == b"hello"
    assert bind.counters.receive_errors == {errno.ECONNREFUSED: 1, errno.EHOSTUNREACH: 1}
    assert bind.counters.reopened == 0


def test_a_dead_socket_is_replaced_under_its_descriptor(bind: UdpBind, script: Script) -> None:
    """The port, the options and the registration in the poll set are kept."""
    filenos = tuple(bind.filenos())
    fileno = filenos[0]
    script.receiving = [errno.ENOTCONN] * 4
    assert bind.receive(fileno) is None
    assert bind.counters.reopened == 1
    assert tuple(bind.filenos()) == filenos
    assert_receives(bind, fileno)


def test_a_duplicate_of_a_dead_socket_does_not_keep_its_port(bind: UdpBind, script: Script) -> None:
    """An engine polls a duplicate, and a forked child has another one."""
    fileno = bind.filenos()[0]
    duplicate = os.dup(fileno)
    try:
        script.receiving = [errno.ENOTCONN] * 4
        assert bind.receive(fileno) is None
        assert bind.counters.reopened == 1
    finally:
        os.close(duplicate)
    assert_receives(bind, fileno)
    port = bind._v4.port if bind._v4 else 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(("0.0.0.0", port))


def test_a_socket_that_dies_repeatedly_is_reopened_after_a_wait(bind: UdpBind, script: Script) -> None:
    """After the second failure within a minute, a timer takes the socket's descriptor until the socket is reopened."""
    fileno = bind.filenos()[0]
    script.receiving = [errno.ENOTCONN] * 8
    bind.receive(fileno)
    bind.receive(fileno)
    assert bind.counters.reopened == 1
    assert bind.send(b"x", 0, ANY_SOCKADDR, None) is not None
    while bind.counters.reopened == 1:
        assert wait_readable(fileno, 5000)
        assert bind.receive(fileno) is None
    assert_receives(bind, fileno)


def test_a_port_lost_while_reopening_is_bound_again_when_free(bind: UdpBind, script: Script) -> None:
    """Another process may hold the port in the meantime."""
    fileno = bind.filenos()[0]
    port = bind._v4.port if bind._v4 else 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        script.on_reopen = lambda: thief.bind(("0.0.0.0", port))
        script.receiving = [errno.ENOTCONN] * 4
        bind.receive(fileno)
        script.on_reopen = lambda: None
        assert bind.counters.reopened == 0
    while bind.counters.reopened == 0:
        assert wait_readable(fileno, 5000)
        assert bind.receive(fileno) is None
    assert_receives(bind, fileno)


def wait_readable(fileno: int, milliseconds: int) -> bool:
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    return bool(poller.poll(milliseconds))


def assert_receives(bind: UdpBind, fileno: int) -> None:
    """Assert that the IPv4 socket receives, with its options."""
    port = bind._v4.port if bind._v4 else 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"again", ("127.0.0.1", port))
    assert wait_readable(fileno, 5000)
    received = bind.receive(fileno)
    assert received is not None and bytes(received.view) == b"again"
    assert received.source is not None and sticky.parse_source(received.source)[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("release", "suspect"),
    [
        ("6.18.44-fc", False),
        ("7.0.0", True),
        ("7.0.3-generic", True),
        ("7.1.4", True),
        ("7.1", True),
        ("7.1.5", False),
        ("7.2.0-rc1", False),
        ("unknown", False),
    ],
)
def test_kernel_releases_that_damage_trains_are_suspect(release: str, suspect: bool) -> None:
    assert udp_offload.is_suspect(release) is suspect
