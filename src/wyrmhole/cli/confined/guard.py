"""End the program of `wyrmhole run`, and all processes that it left behind, when the tunnel ends.

The guard is a separate process, outside the program's session and without a parent that waits for it. It holds one end
of the tunnel's channel, which is closed when the tunnel's process ends for any reason. Then every process in this
network namespace receives SIGTERM, and SIGKILL if it still runs after 5 s: without a network, it could wait forever.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

POLL_SECONDS = 0.02
TERM_POLLS = 250
KILL_POLLS = 500
"""SIGKILL is repeated for 10 s, which only a process blocked in the kernel survives."""


def leave_guard(channel: socket.socket) -> None:
    """Fork a guard and return in the program. No other thread may exist. Raises OSError."""
    child = os.fork()
    if child:
        # The guard must not be the program's child, because the program might wait for it.
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
    for poll in range(TERM_POLLS + KILL_POLLS):
        found = set(neighbours())
        if not found:
            return
        if poll < TERM_POLLS:
            _signal(found - signalled, signal.SIGTERM)
            signalled |= found
        else:
            _signal(found, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def neighbours() -> Iterator[int]:
    """Yield the other processes of this network namespace, without zombies."""
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
