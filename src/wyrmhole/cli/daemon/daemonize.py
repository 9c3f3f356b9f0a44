"""Go to the background like other user-space WireGuard daemons: the caller returns when clients can be served.

    caller -- fork --> leader of a new session -- fork --> daemon
      |                      exits                           | sets everything up
      '-- waits on a pipe <------------ "ready", or a reason '

The TUN and the listening socket are opened before the first fork, so the caller itself reports common set-up errors.
No thread and no event loop may exist at that time, because neither survives a fork.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_READY = b"ready"
_DIED = "the daemon ended during its start: run it with -f and LOG_LEVEL=debug to see the reason"


def open_standard_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed, so that no socket gets one of these numbers."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return


def inherited_descriptors() -> set[int]:
    """Return the open descriptors above 2. Call it before opening any."""
    with suppress(OSError):
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_open(fd)}
    return set()


class Readiness:
    """The daemon's end of the pipe to its caller. Only the first answer counts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def announce(self) -> None:
        self._send(_READY)

    def fail(self, message: str) -> None:
        self._send(message.encode())

    def _send(self, answer: bytes) -> None:
        if self._fd < 0:
            return
        with suppress(OSError):
            os.write(self._fd, answer)
        os.close(self._fd)
        self._fd = -1


def go_to_background(*, keep_output: bool, close: Iterable[int]) -> Readiness:
    """Return only in the daemon. The caller exits with 0 when the daemon is ready, or with 1 and the reason on stderr.

    The daemon has its own session and the directory `/`. It closes the caller's descriptors in `close`; with
    `keep_output`, it keeps stdout and stderr.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        # The listening socket must be closed too: otherwise the socket file still has a listener after the daemon.
        for fd in inherited_descriptors() - {read_fd}:
            os.close(fd)
        os.waitpid(child, 0)
        _exit_with_answer(read_fd)
    os.close(read_fd)
    os.setsid()
    # The daemon is not the leader of its session, so it cannot acquire a controlling terminal.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    _redirect(keep_output)
    for fd in close:
        with suppress(OSError):
            os.close(fd)
    return Readiness(write_fd)


def _exit_with_answer(read_fd: int) -> NoReturn:
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
