"""Calls for another thread, in their order: posted by one thread, applied by the other between two turns.

Each announcement wakes the other thread, so a group of calls is announced once (`commit`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

CALLS_PER_TURN = 512
"""About 2 ms if each were an allowed ip of a large configuration."""


class Mailbox:
    """`wake` is an eventfd, for the poll set of the thread that applies the calls."""

    def __init__(self, wake: int) -> None:
        self._wake = wake
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def fileno(self) -> int:
        return self._wake

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        self._calls.append((call, arguments))

    def commit(self) -> None:
        """Wake the other thread, if there is something for it."""
        if self._calls:
            self.ring()

    def ring(self) -> None:
        os.eventfd_write(self._wake, 1)

    def apply(self) -> None:
        """On the other thread, when `fileno` is readable."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        calls = self._calls
        # What is beyond the limit waits for the next turn, after packets had theirs.
        try:
            for _ in range(min(len(calls), CALLS_PER_TURN)):
                call, arguments = calls[0]
                try:
                    call(*arguments)
                finally:
                    calls.popleft()
        finally:
            # A group of calls wakes once; the rest of it, also after one that raised, is woken for here.
            if calls:
                self.ring()

    def wait_for(self, is_alive: Callable[[], bool], call: Callable[..., object], *arguments: object) -> None:
        """Post a call and wait until it was applied, or until nobody is alive to do so; what it raises is raised."""
        done = threading.Event()
        raised: list[BaseException] = []

        def carry_out() -> None:
            try:
                call(*arguments)
            except Exception as error:
                raised.append(error)
            done.set()

        self.post(carry_out)
        self.commit()
        while not done.wait(1.0):
            if not is_alive():
                return
        if raised:
            raise raised[0]
