"""Removes the socket's file after a daemon that gave up the right to do so.

With `--user` the daemon cannot write in root's /var/run/wireguard any more. A child that stays root without a single
capability holds the reading end of a pipe whose other end is the daemon's; when that one ends, however it ends, the
pipe does, and the child removes the file if nobody serves it. It is made before any key is loaded, has no other
descriptor, and reads nothing that the daemon could send.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn


def leave_caretaker(remove: Callable[[], None], give_up_privileges: Callable[[], None]) -> None:
    """Have `remove` called once this process is gone. No thread may exist. The pipe stays open until then."""
    from wyrmhole.cli.daemonize import inherited_descriptors

    read_fd, _write_fd = os.pipe()
    if os.fork() == 0:
        others = inherited_descriptors() - {read_fd}
        _take_care(read_fd, others, remove, give_up_privileges)
    os.close(read_fd)


def _take_care(
    read_fd: int, others: set[int], remove: Callable[[], None], give_up_privileges: Callable[[], None]
) -> NoReturn:
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
        give_up_privileges()
        while os.read(read_fd, 64):
            continue
        remove()
        status = 0
    finally:
        os._exit(status)
