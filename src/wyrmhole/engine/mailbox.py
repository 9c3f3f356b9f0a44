"""A queue of calls for another thread: posted by one thread, applied in order by the other between two turns.

Each announcement wakes the other thread, so a group of calls is announced once (`commit`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

CALLS_PER_TURN = 512
"""They take about 2 ms, if each inserts an allowed ip of a large configuration."""


class Mailbox:
    """The queue. `wake` is an eventfd, for the poll set of the thread that applies the calls."""

    def __init__(self, wake: int) -> None:
        self._wake = wake
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def fileno(self) -> int:
        return self._wake

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        self._calls.append((call, arguments))

    def commit(self) -> None:
        """Wake the other thread, if there are calls."""
        if self._calls:
            self.ring()

    def ring(self) -> None:
        os.eventfd_write(self._wake, 1)

    def apply(self) -> None:
        """Apply calls. The other thread does this when `fileno` is readable."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        calls = self._calls
        # Calls beyond the limit wait for the next turn, so that packets are not delayed.
        try:
            for _ in range(min(len(calls), CALLS_PER_TURN)):
                call, arguments = calls[0]
                try:
                    call(*arguments)
                finally:
                    calls.popleft()
        finally:
            # Each group of calls wakes this thread only once: wake it for the rest, also after a call that raised.
            if calls:
                self.ring()

    def wait_for(self, is_alive: Callable[[], bool], call: Callable[..., object], *arguments: object) -> None:
        """Post a call and wait until it was applied, or until the other thread is dead. Raises what the call raises."""
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
