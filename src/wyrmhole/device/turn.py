"""One turn of the driver, without its clock and its loop: what happened goes in, events and the next deadline come out.

The driver calls these functions for a device, and the simulator calls them for each of its hosts, so that the order
of reports, timers and events that is simulated is the one that ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wyrmhole.engine.contract import Engine, EngineFailed, TunChanged
from wyrmhole.protocol.data_plane import HandshakeDatagram, Report
from wyrmhole.protocol.events import Event

BATCH = 32
"""Reports in one turn: about 6 ms if each is a handshake to answer."""


class Core(Protocol):
    """The part of an `Interface` that a turn calls. The simulator puts its checks around one."""

    def handle_report(self, report: Report, now: int) -> None: ...

    def handle_timeout(self, now: int) -> None: ...

    def poll_event(self) -> Event | None: ...

    def poll_timeout(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Calls:
    """What a turn calls, outside of any call of the interface. `has_ended`: whether one of the others closed it all."""

    on_tun: Callable[[TunChanged], None]
    on_failure: Callable[[str], None]
    on_event: Callable[[Event], None]
    has_ended: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Turned:
    """`deadline` is when the next timer is due, `waiting` the number of handshakes behind the last one taken."""

    deadline: int | None
    waiting: int


def take_reports(core: Core, engine: Engine, now: int, calls: Calls) -> Turned | None:
    """Handle one batch of reports, then the timers that are due. Returns None if the owner ended meanwhile."""
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
    """Handle the timers that are due. Returns the next deadline."""
    core.handle_timeout(now)
    return settle(core, engine, calls)


def settle(core: Core, engine: Engine, calls: Calls) -> int | None:
    """Carry out what was called and deliver the events. Returns the next deadline."""
    engine.commit()
    while (event := core.poll_event()) is not None:
        calls.on_event(event)
    return core.poll_timeout()
