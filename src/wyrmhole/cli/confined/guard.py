"""Ends what `wyrmhole run` started, when the tunnel is gone: the program, and every process that it left behind.

A process that no parent waits for holds the other end of the tunnel's channel, outside of the program's session. The
channel ends with the tunnel's process, however that ends. Then every process in this network namespace gets SIGTERM,
and SIGKILL if it is still there 5 s later: it has no network any more, and would wait for ever.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

LOOK_SECONDS = 0.02
GRACE_LOOKS = 250
KILL_LOOKS = 500
"""10 s of SIGKILL, which only a process that the kernel itself holds up outlives."""


def leave_guard(channel: socket.socket) -> None:
    """Return in the program only, with a guard elsewhere. No thread may exist. Raises OSError."""
    child = os.fork()
    if child:
        # The guard is nobody's child, lest the program wait for it by mistake.
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            _guard(channel)
    finally:
        os._exit(0)


def _guard(channel: socket.socket) -> NoReturn:
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError):
            while channel.recv(64):
                continue
        end_all()
    finally:
        os._exit(0)


def end_all() -> None:
    """End the other processes of this network namespace."""
    signalled: set[int] = set()
    for look in range(GRACE_LOOKS + KILL_LOOKS):
        found = set(neighbours())
        if not found:
            return
        if look < GRACE_LOOKS:
            _signal(found - signalled, signal.SIGTERM)
            signalled |= found
        else:
            _signal(found, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def neighbours() -> Iterator[int]:
    """The other processes of this network namespace, without zombies."""
    own = os.readlink("/proc/self/ns/net")
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/net") == own:
                    yield int(name)


def _signal(processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(OSError):
            os.kill(process, number)
