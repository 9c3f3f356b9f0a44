"""Going to the background, as a user-space WireGuard daemon does: the caller returns when clients can be served.

    caller -- fork --> leader of a new session -- fork --> daemon
      |                      exits                           | sets everything up
      '-- waits on a pipe <------------ "ready", or why not -'

The TUN and the listening socket exist before the first fork, so set-up errors of the usual kinds are the caller's own.
No thread and no event loop may exist at that time: neither survives a fork.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

_READY = b"ready"
_DIED = "the daemon ended while it started: run it with -f and LOG_LEVEL=debug to see why"


def open_standard_descriptors() -> None:
    """Have something behind 0, 1 and 2, so that no tunnel comes to lie there."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return


def inherited_descriptors() -> set[int]:
    """The open descriptors beyond 2. Call before opening any."""
    with suppress(OSError):
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_open(fd)}
    return set()


class Readiness:
    """The daemon's end of the pipe to its caller. Only the first answer counts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def announce(self) -> None:
        self._say(_READY)

    def fail(self, message: str) -> None:
        self._say(message.encode())

    def _say(self, answer: bytes) -> None:
        if self._fd < 0:
            return
        with suppress(OSError):
            os.write(self._fd, answer)
        os.close(self._fd)
        self._fd = -1


def go_to_background(*, keep_output: bool, close: Iterable[int]) -> Readiness:
    """Return in the daemon only. The caller exits: 0 once it is ready, 1 with its reason on stderr.

    The daemon has its own session, `/` as its directory, and nothing of the caller's open but, with `keep_output`,
    stdout and stderr. `close`: descriptors that came from the caller.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        # The listening socket among them: as long as it is open here, the daemon's file has a server.
        for fd in inherited_descriptors() - {read_fd}:
            os.close(fd)
        os.waitpid(child, 0)
        _exit_as_told(read_fd)
    os.close(read_fd)
    os.setsid()
    # Not being the leader of its session, the daemon cannot come by a controlling terminal.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    _redirect(keep_output)
    for fd in close:
        with suppress(OSError):
            os.close(fd)
    return Readiness(write_fd)


def _exit_as_told(read_fd: int) -> NoReturn:
    with open(read_fd, "rb") as pipe:
        answer = pipe.read()
    if answer == _READY:
        os._exit(0)
    sys.stderr.write(f"wyrmholed: {answer.decode(errors='replace') or _DIED}\n")
    sys.stderr.flush()
    os._exit(1)


def _redirect(keep_output: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0,) if keep_output else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
