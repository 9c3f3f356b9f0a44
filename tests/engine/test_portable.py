"""Properties of the portable engine alone: its command queue, batches that raise, and its use of the interpreter."""

from __future__ import annotations

import sys
import threading

import pytest

from tests.support.edges import PLAIN, ListTun
from tests.support.packets import ipv4
from tests.support.sides import A_INNER, A_OUTER, B_INNER, connected, sides
from wyrmhole.datapath import reports
from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.engine.portable import SWITCH_INTERVAL, PortableEngine
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.data_plane import Active, KeyWanted, Roamed
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

pytestmark = pytest.mark.portable_only


def started(tun: ListTun) -> PortableEngine:
    engine = PortableEngine(lambda: 1000 * SECOND)
    engine.attach_tun(tun)
    return engine


@pytest.mark.parametrize("moment", ["before the flag falls", "after the flag fell"])
def test_activity_during_a_release_is_seen_or_reported(moment: str) -> None:
    """The engine's thread may run between any two steps of the control thread's `release_activity`."""
    a, _ = connected()
    a.tunnel(ipv4(A_INNER, B_INNER))
    a.engine.forget_unanswered(1, a.engine.marks(1).data_sent_since)
    a.reports()

    class Interrupted(EnginePeer):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            falls = name == "active_reported" and value is False and a.tun.to_read
            if falls and moment == "before the flag falls":
                a.engine.turn()
            object.__setattr__(self, name, value)
            if falls and moment == "after the flag fell":
                a.engine.turn()

    a.engine._tables.peers[1].__class__ = Interrupted
    a.tun.inject(PLAIN + ipv4(A_INNER, B_INNER))
    seen = a.engine.release_activity(1).data_sent_since != 0
    assert seen or Active(1) in a.reports()
    assert not a.tun.to_read


def test_a_command_that_raises_does_not_delay_the_next_ones() -> None:
    """The next commands were posted while the thread was busy, so nothing else would wake it."""
    engine = started(ListTun())
    holds, done = threading.Event(), threading.Event()
    engine._post(holds.wait, 10)
    engine._post(lambda: 1 // 0)
    engine._post(done.set)
    engine.commit()
    holds.set()
    assert done.wait(10)
    assert engine.drops() == {DropReason.INTERNAL_ERROR: 1}
    engine.close()


def test_an_abandoned_batch_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"0"))
    a.tunnel(ipv4(A_INNER, B_INNER, b"1"), ipv4(A_INNER, B_INNER, b"2"))
    data = a.take()
    b.engine._tables.routes.clear()
    found = b.engine._tables.route
    calls: list[bytes] = []

    def route(source: bytes) -> EnginePeer | None:
        calls.append(source)
        if len(calls) == 2:
            raise RuntimeError("a bug")
        return None if len(calls) > 2 else found(source)

    b.engine.insert_allowed_ip(1, Prefix.parse("10.0.0.0/24"))
    monkeypatch.setattr(b.engine._tables, "route", route)
    a.tunnel(ipv4("10.0.0.77", B_INNER, b"1"))
    with pytest.raises(RuntimeError):
        b.network(b"".join([data[1], *a.take()]), A_OUTER, segment=len(data[1]))
    b.engine._loop._give_up_batch()
    monkeypatch.undo()
    b.network(data[2], A_OUTER)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"2")]
    assert b.drops() == {DropReason.INTERNAL_ERROR: 1}


def test_an_engine_that_raises_in_every_turn_reports_failure() -> None:
    engine = started(ListTun())

    def fail() -> None:
        engine._post(fail)
        raise RuntimeError("a bug in every turn")

    engine._post(fail)
    engine.commit()
    thread = engine._thread
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
    assert any(type(report).__name__ == "EngineFailed" for report in engine.poll_reports(10_000))
    engine.close()


def test_the_thread_lowers_the_interpreter_s_switch_interval() -> None:
    """By default, another Python thread keeps the interpreter for 5 ms after each system call of the engine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    engine = started(ListTun())
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    sys.setswitchinterval(1e-6)
    engine.close()
    started(ListTun()).close()
    assert sys.getswitchinterval() == pytest.approx(1e-6), "a shorter interval is left alone"
    sys.setswitchinterval(before)


def test_reports_refused_by_a_full_queue_are_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = connected()
    c, _ = sides()
    monkeypatch.setattr(reports, "MAX_REPORTS", 0)
    c.tunnel(ipv4(A_INNER, B_INNER))
    b.tunnel(ipv4(B_INNER, A_INNER))
    a.network(b.take()[0], Endpoint("203.0.113.9", 9))
    assert (a.reports(), c.reports()) == ([], [])
    assert c.drops() == {DropReason.REPORT_QUEUE_FULL: 1}
    monkeypatch.undo()
    c.tunnel(ipv4(A_INNER, B_INNER))
    assert c.reports() == [KeyWanted(1)]
    a.engine.forget_received(1, a.now)
    for _ in range(2):
        b.tunnel(ipv4(B_INNER, A_INNER))
    for datagram in b.take():
        a.network(datagram, Endpoint("203.0.113.9", 10))
    assert set(map(type, a.reports())) == {Active, Roamed}
