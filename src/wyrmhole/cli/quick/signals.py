"""Signals that end `up` and `down`: noted when they arrive, acted on where nothing is half done.

A signal that raised in the middle of a netlink request would leave a socket whose next answer belongs to the question
before. So the handler only notes the number. `check` raises between two steps, and the handler itself raises inside
`waiting`, where the command waits for a hook or a name server.

SIGHUP is among them: it arrives when the SSH session ends which the tunnel's new default route just cut off.
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
"""Every signal that people, terminals and service managers send, and that would end a program which does not ask."""


class Interrupts:
    """Without `watch` no signal is handled and nothing here ever raises."""

    def __init__(self) -> None:
        self._number = 0
        self._is_waiting = False
        self._is_held = False

    def watch(self) -> None:
        """Handle the signals. One that is ignored, as SIGHUP under nohup(1), stays ignored."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    @property
    def is_pending(self) -> bool:
        return self._number != 0 and not self._is_held

    def check(self) -> None:
        """Raises SystemExit with the shell's status if a signal arrived. It does so once."""
        if self.is_pending:
            self._is_held = True
            raise SystemExit(128 + self._number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a signal raise at once."""
        self._is_waiting = True
        try:
            self.check()
            yield
        finally:
            self._is_waiting = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing end what is inside: it undoes, its steps are bounded, and half of it would be worse than all.

        A signal that arrives meanwhile is forgotten: what follows belongs to it, as PostDown to `down`.
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
