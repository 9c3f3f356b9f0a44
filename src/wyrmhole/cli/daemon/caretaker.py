"""Remove the socket file for a daemon that has given up the right to do so.

A running daemon cannot remove files, and with `--user` it cannot write to root's /var/run/wireguard. Therefore a child
process, which keeps its user but no capabilities, holds the reading end of a pipe to the daemon. When the daemon ends
in any way, the pipe is closed, and the child removes the file if nobody serves it. The child is forked before any key
is loaded. Its only other descriptor is the pipe on which it reports completion. The daemon cannot command it: a byte
only reports that the socket is closed, so that the child need not wait.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from wyrmhole.cli.daemon.daemonize import END_SIGNALS, inherited_descriptors

DONE_SECONDS = 2.0
"""How long a daemon that ends normally waits until the file is removed."""

COMMAND = "wyrm-caretaker"
"""The process name in ps(1); the kernel keeps 15 characters."""

Remove = Callable[[bool], None]
"""Removes the file. The argument reports whether the daemon closed its socket."""


class Caretaker:
    """The daemon's handle of its caretaker. The pipe stays open until `finish` or the end of the process."""

    def __init__(self, life: int, done: int) -> None:
        self._life = life
        self._done = done

    def finish(self) -> None:
        """Have the file removed now. The socket must be closed. Idempotent."""
        if self._life < 0:
            return
        with suppress(OSError):
            os.write(self._life, b".")
        os.close(self._life)
        poll = select.poll()
        poll.register(self._done, select.POLLIN)
        poll.poll(DONE_SECONDS * 1000)
        os.close(self._done)
        self._life = self._done = -1


def leave_caretaker(remove: Remove, give_up_privileges: Callable[[], None]) -> Caretaker:
    """Fork a caretaker that calls `remove` after this process has ended. No thread may exist."""
    life_read, life_write = os.pipe()
    done_read, done_write = os.pipe()
    if os.fork() == 0:
        others = inherited_descriptors() - {life_read, done_write}
        _take_care(life_read, others, remove, give_up_privileges)
    os.close(life_read)
    os.close(done_write)
    return Caretaker(life_write, done_read)


def _take_care(life: int, others: set[int], remove: Remove, give_up_privileges: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        for fd in others:
            os.close(fd)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        # A service manager signals the whole group, but the daemon has to end first.
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        with suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write(COMMAND)
        give_up_privileges()
        is_closed = bool(os.read(life, 1))
        while os.read(life, 64):
            continue
        remove(is_closed)
        status = 0
    finally:
        os._exit(status)
