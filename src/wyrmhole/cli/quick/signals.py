"""Signals that end `up` and `down`. They are recorded on arrival and take effect between two steps.

An exception in the middle of a netlink request would leave a socket whose next answer belongs to that request. So the
handler only records the number. `check` raises between two steps, and the handler itself raises inside `waiting`, where
the command waits for a hook or a name server.

SIGHUP is included: it arrives when the tunnel's new default route cuts off the SSH session.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
"""All signals that users, terminals and service managers send, and that end a program by default."""


class Interrupts:
    """The state of signals. Without `watch`, no signal is handled and no method raises."""

    def __init__(self) -> None:
        self._number = 0
        self._is_waiting = False
        self._is_held = False

    def watch(self) -> None:
        """Handle the signals. An ignored one, such as SIGHUP under nohup(1), stays ignored."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    @property
    def is_pending(self) -> bool:
        return self._number != 0 and not self._is_held

    def check(self) -> None:
        """Raise SystemExit with the shell's status, once, if a signal has arrived."""
        if self.is_pending:
            self._is_held = True
            raise SystemExit(128 + self._number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a signal raise SystemExit at once within the block."""
        self._is_waiting = True
        try:
            self.check()
            yield
        finally:
            self._is_waiting = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Ignore signals within the block, which undoes steps: it is bounded, and must not be left half done.

        A signal that arrives within the block is forgotten, because the rest of the command belongs to the undoing.
        """
        before = self._is_held, self._number
        self._is_held = True
        try:
            yield
        finally:
            self._is_held, self._number = before

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = self._number or number
        if self._is_waiting:
            self.check()
