"""The descriptors that an engine polls, each through its own duplicate.

The owner of a descriptor may close it at any time. If the program's next file or socket then got the same number, an
engine that polls this number would read from that file or write to it. A duplicate belongs to the engine alone. It is
made when an edge is attached and closed when the edge is detached.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable
from typing import Protocol


def eventfds(count: int) -> list[int]:
    """Open `count` eventfds. Raises OSError; then none is open."""
    made: list[int] = []
    try:
        for _ in range(count):
            made.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


class Poller(Protocol):
    """The common part of `select.poll` and `select.epoll`, which use the same flags."""

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


class Polled:
    """The polled descriptors, identified by their owners' numbers. `lent` translates the number in an event back."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._own: dict[int, int] = {}
        self._lent: dict[int, int] = {}

    def add(self, lent: int) -> None:
        """Poll a descriptor for reading. Raises OSError (EBADF, EMFILE); then nothing has changed."""
        if lent in self._own:
            self.discard(lent)
        own = os.dup(lent)
        try:
            self._poller.register(own, select.POLLIN)
        except BaseException:
            os.close(own)
            raise
        self._own[lent], self._lent[own] = own, lent

    def add_all(self, lent: Iterable[int]) -> None:
        """Poll several descriptors for reading. Raises OSError; then none is added."""
        added: list[int] = []
        try:
            for fd in lent:
                self.add(fd)
                added.append(fd)
        except BaseException:
            for fd in added:
                self.discard(fd)
            raise

    def renew(self, lent: int) -> None:
        """Duplicate the descriptor again, because its owner may have replaced the file under this number."""
        with contextlib.suppress(KeyError, OSError):
            os.dup2(lent, self._own[lent], inheritable=False)

    def pause(self, lent: int) -> None:
        """Keep the descriptor without polling it."""
        if (own := self._own.get(lent)) is not None:
            with contextlib.suppress(KeyError, OSError):
                self._poller.unregister(own)

    def resume(self, lent: int) -> None:
        if (own := self._own.get(lent)) is not None:
            with contextlib.suppress(FileExistsError):
                self._poller.register(own, select.POLLIN)

    def discard(self, lent: int) -> None:
        """Stop polling the descriptor. Has no effect if it is not polled."""
        self.pause(lent)
        own = self._own.pop(lent, None)
        if own is not None:
            del self._lent[own]
            os.close(own)

    def close(self) -> None:
        for lent in list(self._own):
            self.discard(lent)

    def lent(self, own: int) -> int | None:
        """Return the owner's number for a duplicate, or None if it is not polled here."""
        return self._lent.get(own)
