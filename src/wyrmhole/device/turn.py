"""One turn of the driver, without clock and loop: it takes reports and the time, and returns events and a deadline.

The driver calls these functions for a device, and the simulator calls them for each of its hosts. The order of reports,
timers and events in the simulation is therefore the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wyrmhole.engine.contract import Engine, EngineFailed, TunChanged
from wyrmhole.protocol.data_plane import HandshakeDatagram, Report
from wyrmhole.protocol.events import Event

BATCH = 32
"""Reports in one turn. They take about 6 ms, if each is a handshake to answer."""


class Core(Protocol):
    """The methods of `Interface` that a turn calls. The simulator wraps an interface in its checks."""

    def handle_report(self, report: Report, now: int) -> None: ...

    def handle_timeout(self, now: int) -> None: ...

    def poll_event(self) -> Event | None: ...

    def poll_timeout(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Calls:
    """The callbacks of a turn, called outside of any interface call. `has_ended` returns whether one of the others
    closed the device."""

    on_tun: Callable[[TunChanged], None]
    on_failure: Callable[[str], None]
    on_event: Callable[[Event], None]
    has_ended: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Turned:
    """The result of a turn: the next deadline, and the number of handshakes behind the last one taken."""

    deadline: int | None
    waiting: int


def take_reports(core: Core, engine: Engine, now: int, calls: Calls) -> Turned | None:
    """Handle one batch of reports, then the timers that are due. Return None if the device was closed meanwhile."""
    waiting = 0
    for report in engine.poll_reports(BATCH):
        if isinstance(report, HandshakeDatagram):
            waiting = report.queue_depth
            core.handle_report(report, now)
        elif isinstance(report, TunChanged):
            calls.on_tun(report)
        elif isinstance(report, EngineFailed):
            calls.on_failure(report.reason)
        else:
            core.handle_report(report, now)
    return None if calls.has_ended() else Turned(run_timers(core, engine, now, calls), waiting)


def run_timers(core: Core, engine: Engine, now: int, calls: Calls) -> int | None:
    """Handle the timers that are due. Return the next deadline."""
    core.handle_timeout(now)
    return settle(core, engine, calls)


def settle(core: Core, engine: Engine, calls: Calls) -> int | None:
    """Commit calls to the engine and deliver the events. Return the next deadline."""
    engine.commit()
    while (event := core.poll_event()) is not None:
        calls.on_event(event)
    return core.poll_timeout()
