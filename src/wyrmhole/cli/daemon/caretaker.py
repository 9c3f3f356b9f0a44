"""Removes the socket's file after a daemon that gave up the right to do so.

A daemon that has started cannot remove files, and with `--user` it could not write in root's /var/run/wireguard. A
child that keeps its user, without a single capability, holds the reading end of a pipe whose other end is the
daemon's. When the daemon ends, however it ends, the pipe does, and the child removes the file if nobody serves it. It
is made before any key is loaded, has no other descriptor but the pipe on which it reports that it is done, and acts
on nothing that the daemon could send: a byte only says that the socket is closed, and saves it the patience.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

DONE_SECONDS = 2.0
"""How long a daemon that ends in order waits for the file to be removed."""

COMMAND = "wyrm-caretaker"
"""What ps(1) calls it; the kernel keeps 15 characters."""

Remove = Callable[[bool], None]
"""Removes the file. The argument: whether the daemon said that its socket is closed."""


class Caretaker:
    """The daemon's side. The pipe stays open until `finish`, or the end of the process."""

    def __init__(self, life: int, done: int) -> None:
        self._life = life
        self._done = done

    def finish(self) -> None:
        """Have the file removed now: the socket is closed. Idempotent."""
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
    """Have `remove` called once this process is gone. No thread may exist."""
    from wyrmhole.cli.daemon.daemonize import inherited_descriptors

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
        # A service manager signals the whole group; the daemon has to go first.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
