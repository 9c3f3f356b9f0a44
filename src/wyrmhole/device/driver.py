"""The loop around the pure interface: input, drain, act, re-arm one timer.

What happens in a turn is in `turn`; here are the loop, the alarm and the rest.

Everything runs on the asyncio loop's thread. An engine report or the alarm wakes it; it feeds what there is to the
interface, hands TUN changes and events to the device, and sets the alarm to the interface's next deadline. Reports are
taken in small batches, so that a flood of handshakes cannot keep the loop from its other work (the UAPI). While more
handshakes wait than there should, the loop also rests after each batch, if the engine's thread shares the interpreter
with it: handshakes must not delay data. Behind the native engine a rest would only lose handshakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wyrmhole.device import turn
from wyrmhole.device.clock import Alarm, Clock
from wyrmhole.device.turn import Calls
from wyrmhole.engine.contract import Engine, TunChanged
from wyrmhole.protocol.constants import SECOND, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.events import Event
from wyrmhole.protocol.interface import Interface

REST = 6
"""Under load, the rest after a batch is this many times as long as the batch took: handshakes get 1/7 of the time."""


class Driver:
    """`on_tun`, `on_failure` and `on_event` are called on the loop, outside of any interface call."""

    def __init__(
        self,
        interface: Interface,
        engine: Engine,
        clock: Clock,
        *,
        on_tun: Callable[[TunChanged], None],
        on_failure: Callable[[str], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._interface = interface
        self._engine = engine
        self._clock = clock
        self._calls = Calls(on_tun, on_failure, on_event, has_ended=lambda: self._loop is None)
        self._alarm = Alarm()
        self._armed: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._engine.fileno(), self._handle_reports)
        self._loop.add_reader(self._alarm.fileno(), self._handle_alarm)

    def stop(self) -> None:
        """Idempotent; no callback runs afterwards."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._engine.fileno())
            loop.remove_reader(self._alarm.fileno())
        self._alarm.close()

    def settle(self) -> None:
        """Call after every command to the interface: carry it out, deliver its events, re-arm the alarm."""
        self._arm(turn.settle(self._interface, self._engine, self._calls))

    def _arm(self, deadline: int | None) -> None:
        if deadline != self._armed and self._loop is not None:
            self._alarm.set(deadline)
            self._armed = deadline

    def _handle_alarm(self) -> None:
        self._alarm.clear()
        self._armed = None
        self._arm(turn.run_timers(self._interface, self._engine, self._clock.boottime(), self._calls))

    def _handle_reports(self) -> None:
        now = self._clock.boottime()
        turned = turn.take_reports(self._interface, self._engine, now, self._calls)
        if turned is not None:
            self._arm(turned.deadline)
            is_flooded = turned.waiting >= UNDER_LOAD_QUEUE_DEPTH and self._engine.shares_interpreter
            if is_flooded and self._loop is not None:
                self._rest(self._clock.boottime() - now)

    def _rest(self, worked: int) -> None:
        """Take no reports for a while; `worked` is what the last took, in nanoseconds."""
        assert self._loop is not None
        self._loop.remove_reader(self._engine.fileno())
        self._loop.call_later(REST * worked / SECOND, self._resume)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._engine.fileno(), self._handle_reports)
