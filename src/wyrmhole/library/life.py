"""The end of a tunnel: what ends with it, and in what order, no matter what causes the end.

A `Tunnel` is a front that nothing inside holds. When the program closes it, drops it, or exits, or when the device
closes itself, `Life` ends the rest, once:

1. services, servers and every socket inside, so that the remote hosts are notified before the TUN closes;
2. device, engine and TUN, in one step on the tunnel's loop;
3. the stack, because the engine must not poll closed descriptors.

A separate thread does this. A task could be cancelled by the program together with all others, and the threads of the
loop's executor could all be busy. The thread does not wait for a loop that is closed or stopped.

This module holds every `Life` until it has ended. Otherwise the end could run after the garbage collector has finalized
its objects, sockets among them.
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
"""Limit of the wait for the engine to drain the TUN, in seconds. It exceeds any scheduling delay that we have seen, and
limits `close` when packets cannot leave."""
APPLIED_PATIENCE = 1.0
"""Seconds to wait until the engine has executed earlier calls."""
LOOP_PATIENCE = 1.0
"""Seconds after which a stopped loop is assumed to stay stopped."""
EXIT_PATIENCE = 5.0
"""Seconds that the exit of the program waits for its tunnels."""
_STEP = 0.1

log = logging.getLogger("wyrmhole")
_living: set[Life] = set()
_exiting = threading.Event()


class Life:
    """Ends a tunnel once. Made on the tunnel's loop.

    `begin` and `drop` are thread-safe, and the garbage collector may call them.
    """

    def __init__(self, stack: Stack, outside: ConfiguredDevice) -> None:
        self.stack = stack
        self.outside = outside
        self.services: list[Service] = []
        self.servers: list[TunnelServer] = []
        self._loop = asyncio.get_running_loop()
        self._forks = ForkGuard()
        self._tickets = [True]
        """The caller that pops the only ticket begins the end. `pop` is atomic and, unlike a lock, cannot deadlock when
        the garbage collector runs in a thread that holds it."""
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
        """Check that the tunnel is open. Raises TunnelError."""
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
        """Begin the end and wait for it. Idempotent. Cancelling `close` stops only the waiting."""
        if self.is_forked:
            return
        self.begin()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if not self._ended.is_set():
            await waiter

    def drop(self) -> None:
        """Begin the end of a tunnel that was not closed: the program dropped its last reference, or exits."""
        if self.is_forked or self.closed:
            return
        try:
            warnings.warn(f"{self._describe()} was never closed", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.begin()

    def begin(self) -> None:
        """Begin the end without waiting for it. Idempotent."""
        if self.is_forked:
            return
        try:
            self._tickets.pop()
        except IndexError:
            return
        try:
            # Not `threading.Thread`, which takes locks that the thread that drops a tunnel may hold.
            _thread.start_new_thread(self._end, ())
        except RuntimeError:
            self._has_thread = False
            self._end()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call `call` once, in any thread, when the tunnel has ended."""
        self._when_ended.append(call)

    def wait(self, timeout: float) -> bool:
        """Block until the tunnel has ended. Return False after `timeout` seconds."""
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
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            for call in self._when_ended:
                call()

    def _end_services(self) -> None:
        ends = [service.close for service in self.services] + [server.close for server in self.servers]
        for end in ends:
            # Raised if the loop is closed, which has ended its servers.
            with contextlib.suppress(RuntimeError):
                end()

    def _end_listeners(self) -> None:
        """End listeners before their sockets: asyncio logs an error for a listener that is aborted first."""
        ended = threading.Event()

        def end() -> None:
            self._end_services()
            # Scheduled after the callbacks that closing has scheduled.
            self._loop.call_soon(ended.set)

        if self._can_ask() and self._on_loop(end):
            ended.wait(LOOP_PATIENCE)

    def _end_sockets(self) -> None:
        self.stack.abort_all()
        # Aborted sockets send resets to the remote hosts; these packets must leave the TUN.
        self.outside.device.drain(LAST_PACKETS)
        if not self.outside.device.is_closed and self._can_ask():
            applied = threading.Event()
            if self._on_loop(self.outside.device.when_applied, applied.set):
                applied.wait(APPLIED_PATIENCE)

    def _end_outside(self) -> None:
        """End device, engine and TUN on the loop that has their readers and timers, or here if it does not run."""
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
                log.exception("closing a tunnel's device failed")
            self._outside_ended.set()

    def _can_ask(self) -> bool:
        """Whether the loop will execute calls while this thread waits."""
        return self._has_thread and self._loop.is_running()

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@atexit.register
def _end_all() -> None:
    """Close open tunnels in order when the program exits, so that remote hosts are notified."""
    _exiting.set()
    lives = [life for life in list(_living) if not life.is_forked]
    for life in lives:
        life.drop()
    for _ in range(round(EXIT_PATIENCE / _STEP)):
        if all(life.wait(_STEP) for life in lives):
            return
