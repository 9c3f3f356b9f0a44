"""The loop around the pure interface: the asyncio loop, the alarm, and pauses under load.

What happens in a turn is in `turn`. Everything runs on the asyncio loop's thread. An engine report or the alarm wakes
it. It passes reports and time to the interface, passes TUN changes and events to the device, and sets the alarm to the
interface's next deadline.

Reports are taken in small batches, so that a flood of handshakes cannot keep the loop from its other work (the UAPI).
If too many handshakes wait and the engine's thread shares the interpreter, the loop also pauses after each batch:
handshakes must not delay data. With the native engine, a pause would only lose handshakes.
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

PAUSE_FACTOR = 6
"""Under load, the pause after a batch is this many times as long as the batch took: handshakes get 1/7 of the time."""


class Driver:
    """Runs the turns. `on_tun`, `on_failure` and `on_event` are called on the loop, outside of any interface call."""

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
        """Stop. Idempotent; no callback runs afterwards."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._engine.fileno())
            loop.remove_reader(self._alarm.fileno())
        self._alarm.close()

    def settle(self) -> None:
        """Carry out commands to the interface, deliver their events, and set the alarm. Call it after every command."""
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
                self._pause(self._clock.boottime() - now)

    def _pause(self, batch_time: int) -> None:
        """Take no reports for `PAUSE_FACTOR` times the nanoseconds that the last batch took."""
        assert self._loop is not None
        self._loop.remove_reader(self._engine.fileno())
        self._loop.call_later(PAUSE_FACTOR * batch_time / SECOND, self._resume)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._engine.fileno(), self._handle_reports)
