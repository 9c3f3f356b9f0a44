"""One turn of the loop: the order of reports, timers and events, and the conditions that end the turn."""

from __future__ import annotations

from typing import Any, cast

from wyrmhole.device import turn
from wyrmhole.device.turn import BATCH, Calls, Turned
from wyrmhole.engine.contract import Engine, EngineFailed, EngineReport, TunChanged
from wyrmhole.net.tun import TunEvent
from wyrmhole.protocol.data_plane import Active, HandshakeDatagram, Report
from wyrmhole.protocol.events import Event
from wyrmhole.wire.endpoint import Endpoint

NOW = 7


class Scene:
    """An interface, an engine and an owner in one, which records its calls in order."""

    def __init__(self, *reports: EngineReport, events: int = 0) -> None:
        self.seen: list[object] = []
        self.reports = list(reports)
        self.events = events
        self.ended = False
        self.calls = Calls(
            on_tun=lambda report: self.seen.append(report.event),
            on_failure=self.fail,
            on_event=lambda event: self.seen.append("event"),
            has_ended=lambda: self.ended,
        )

    def fail(self, reason: str) -> None:
        self.seen.append(reason)
        self.ended = True

    def poll_reports(self, limit: int) -> list[EngineReport]:
        taken, self.reports = self.reports[:limit], self.reports[limit:]
        return taken

    def commit(self) -> None:
        self.seen.append("commit")

    def handle_report(self, report: Report, now: int) -> None:
        self.seen.append((type(report).__name__, now))

    def handle_timeout(self, now: int) -> None:
        self.seen.append(("timeout", now))

    def poll_event(self) -> Event | None:
        self.events -= 1
        return cast(Any, object()) if self.events >= 0 else None

    def poll_timeout(self) -> int | None:
        return 99

    def take(self) -> Turned | None:
        return turn.take_reports(self, cast(Engine, self), NOW, self.calls)


def handshake(depth: int) -> HandshakeDatagram:
    return HandshakeDatagram(b"\1", Endpoint("192.0.2.1", 1), None, queue_depth=depth)


def test_timers_follow_reports_and_events_follow_the_commit() -> None:
    scene = Scene(Active(1), TunChanged(TunEvent.MTU), handshake(5), events=2)
    assert scene.take() == Turned(deadline=99, waiting=5)
    reports = [("Active", NOW), TunEvent.MTU, ("HandshakeDatagram", NOW)]
    assert scene.seen == [*reports, ("timeout", NOW), "commit", "event", "event"]


def test_a_turn_handles_one_batch_of_reports() -> None:
    scene = Scene(*[handshake(200 - number) for number in range(2 * BATCH)])
    turned = scene.take()
    assert turned is not None and turned.waiting == 200 - BATCH + 1
    assert len(scene.reports) == BATCH


def test_no_timer_runs_after_a_report_that_ends_the_device() -> None:
    scene = Scene(EngineFailed("broken"), Active(1))
    assert scene.take() is None
    assert scene.seen == ["broken", ("Active", NOW)]


def test_due_timers_run_without_reports() -> None:
    scene = Scene(Active(1), events=1)
    assert turn.run_timers(scene, cast(Engine, scene), NOW, scene.calls) == 99
    assert scene.seen == [("timeout", NOW), "commit", "event"]
