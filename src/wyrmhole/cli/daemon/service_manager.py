"""Report the daemon's state to a service manager (sd_notify(3)), and feed its watchdog.

The protocol is a datagram `NAME=value` to the Unix socket in NOTIFY_SOCKET. There is no answer, and without that
variable nothing is sent. The watchdog is fed only after a check of the whole daemon: the loop has run this task, and
the engine's thread has executed a command for it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
MICROSECONDS = 1_000_000
FEEDS_PER_PERIOD = 3
"""One feed may be late without a time-out of the watchdog."""


class ServiceManager:
    """A connection to the service manager.

    `take` removes its variables from the environment, so that no child uses them.
    """

    def __init__(self, address: str, watchdog_seconds: float | None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> ServiceManager:
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        is_for_us = environ.pop("WATCHDOG_PID", str(pid)) == str(pid)
        has_watchdog = is_for_us and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
        # Other kinds of sockets (vsock:) are for virtual machines.
        supported = address if address[:1] in ("/", "@") else ""
        return cls(supported, int(microseconds) / MICROSECONDS if supported and has_watchdog else None)

    def report(self, state: str) -> None:
        """Report a state. Never waits and never fails, because a tunnel works without its manager."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(state.encode(), self._address)

    async def feed(self, prove: Callable[[], Awaitable[object]]) -> None:
        """Feed the watchdog each time `prove` returns. Return at once if there is no watchdog."""
        if self.watchdog_seconds is None:
            return
        while True:
            await prove()
            self.report(ALIVE)
            await asyncio.sleep(self.watchdog_seconds / FEEDS_PER_PERIOD)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def take_service_manager() -> ServiceManager:
    return ServiceManager.take(os.environ, os.getpid())
