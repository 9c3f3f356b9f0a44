"""A tunnel's life: what ends with it, in what order, whoever ends it and when.

A `Tunnel` is a front that nothing inside holds. When the program closes it, drops it, or exits, or when the device
closes itself, this ends the rest, once:

1. services, servers and every socket inside, so that the other sides hear of it, and what they say leaves the TUN;
2. device, engine and TUN, in one step on the tunnel's loop;
3. the stack, last: what the engine polls must not be closed under it.

A thread of its own does so. It is not a task, which the program might cancel with all others, and not a job of the
loop's executor, whose threads might all be busy. A loop that is closed, or does not run any more, is not waited for.

Until it has ended, a life is held by this module. So the end never runs among objects that the garbage collector has
finalized already, as it may have finalized sockets.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import errno
import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from wyrmhole.errors import TunnelError
from wyrmhole.library.common.fork_guard import ForkGuard
from wyrmhole.library.configured_device import ConfiguredDevice
from wyrmhole.library.stacks.stack import Stack

if TYPE_CHECKING:
    from wyrmhole.library.services.service import Service
    from wyrmhole.library.sockets.servers import TunnelServer

LAST_PACKETS = 0.1
"""Seconds, longer than a busy machine keeps the engine waiting; it limits `close` when packets cannot leave."""
APPLIED_PATIENCE = 1.0
"""Seconds for the engine to finish what it is at."""
LOOP_PATIENCE = 1.0
"""Seconds after which a loop that does not run is taken for one that will not run again."""
EXIT_PATIENCE = 5.0
"""Seconds that the end of the program waits for its tunnels."""
_STEP = 0.1

log = logging.getLogger("wyrmhole")
_living: set[Life] = set()
_exiting = threading.Event()


class Life:
    """Made on the tunnel's loop. `begin` and `drop` may be called from any thread, also by the garbage collector."""

    def __init__(self, stack: Stack, outside: ConfiguredDevice) -> None:
        self.stack = stack
        self.outside = outside
        self.services: list[Service] = []
        self.servers: list[TunnelServer] = []
        self._loop = asyncio.get_running_loop()
        self._forks = ForkGuard()
        self._tickets = [True]
        """Whoever takes the only one begins the end: atomic, and no lock that the same thread might hold."""
        self._describe: Callable[[], str] = self.__repr__
        self._has_thread = True
        self._outside = threading.RLock()
        self._outside_ended = threading.Event()
        self._ended = threading.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._when_ended: list[Callable[[], None]] = []
        outside.device.on_closed = self.begin
        _living.add(self)

    @property
    def closed(self) -> bool:
        return not self._tickets

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in a child of the process that the tunnel belongs to."""
        return self._forks.is_forked

    def check(self) -> None:
        """Raises TunnelError."""
        self._forks.check()
        if self.closed:
            failure = self.outside.device.failure
            raise TunnelError(errno.EBADF, f"the tunnel is closed{f': {failure}' if failure else ''}")

    # The end

    def follow(self, front: object, describe: Callable[[], str]) -> None:
        """End when `front` is dropped. `describe` names the tunnel in the warning, and must not hold the front."""
        self._describe = describe
        weakref.finalize(front, self.drop).atexit = False

    async def close(self) -> None:
        """Begin, and wait until nothing is left. Idempotent; cancelling it stops the waiting only."""
        if self.is_forked:
            return
        self.begin()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if not self._ended.is_set():
            await waiter

    def drop(self) -> None:
        """The program lost its last reference, or exits."""
        if self.is_forked or self.closed:
            return
        try:
            warnings.warn(f"{self._describe()} was never closed", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.begin()

    def begin(self) -> None:
        """Idempotent; does not wait."""
        if self.is_forked:
            return
        try:
            self._tickets.pop()
        except IndexError:
            return
        try:
            # Without the locks of `threading`, which the thread that drops a tunnel may hold.
            _thread.start_new_thread(self._end, ())
        except RuntimeError:
            self._has_thread = False
            self._end()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Once, from any thread."""
        self._when_ended.append(call)

    def wait(self, timeout: float) -> bool:
        """Block until it has ended."""
        return self._ended.wait(timeout)

    def _end(self) -> None:
        try:
            for step in (self._end_listeners, self._end_sockets, self._end_outside, self.stack.close):
                try:
                    step()
                except Exception:
                    log.exception("a step of closing a tunnel failed")
        finally:
            if not self._can_ask():
                self._end_services()
            self._ended.set()
            _living.discard(self)
            for waiter in list(self._waiters):
                with contextlib.suppress(RuntimeError):
                    waiter.get_loop().call_soon_threadsafe(_tell, waiter)
            for call in self._when_ended:
                call()

    def _end_services(self) -> None:
        ends = [service.close for service in self.services] + [server.close for server in self.servers]
        for end in ends:
            # A loop that is closed has no use for what it is told.
            with contextlib.suppress(RuntimeError):
                end()

    def _end_listeners(self) -> None:
        """Before their sockets: a loop that finds a listener aborted while it is cancelled logs an error."""
        ended = threading.Event()

        def end() -> None:
            self._end_services()
            # Behind what cancelling has the loop do next.
            self._loop.call_soon(ended.set)

        if self._can_ask() and self._on_loop(end):
            ended.wait(LOOP_PATIENCE)

    def _end_sockets(self) -> None:
        self.stack.abort_all()
        # Sockets that were aborted tell the other side: those packets must leave the TUN.
        self.outside.device.drain(LAST_PACKETS)
        if not self.outside.device.is_closed and self._can_ask():
            applied = threading.Event()
            if self._on_loop(self.outside.device.when_applied, applied.set):
                applied.wait(APPLIED_PATIENCE)

    def _end_outside(self) -> None:
        """On the loop, whose readers and timers these are, as long as there is one that runs."""
        idle = 0.0
        while not self._outside_ended.is_set():
            is_idle = not self._loop.is_running()
            is_over = self._loop.is_closed() or (is_idle and (idle >= LOOP_PATIENCE or _exiting.is_set()))
            if is_over or not self._has_thread:
                self._end_outside_here()
                return
            self._on_loop(self._end_outside_here)
            self._outside_ended.wait(_STEP)
            idle = idle + _STEP if is_idle else 0.0

    def _end_outside_here(self) -> None:
        with self._outside:
            if self._outside_ended.is_set():
                return
            try:
                self.outside.end()
            except Exception:
                log.exception("a tunnel's device could not be closed in order")
            self._outside_ended.set()

    def _can_ask(self) -> bool:
        """Whether what is asked of the loop will be done while this waits."""
        return self._has_thread and self._loop.is_running()

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True


def _tell(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@atexit.register
def _end_all() -> None:
    """What is still open when the program ends is closed in order: the other sides hear of it."""
    _exiting.set()
    lives = [life for life in list(_living) if not life.is_forked]
    for life in lives:
        life.drop()
    for _ in range(round(EXIT_PATIENCE / _STEP)):
        if all(life.wait(_STEP) for life in lives):
            return
