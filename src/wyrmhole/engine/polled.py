"""Descriptors of others that an engine polls, each by a duplicate of its own.

A number in a poll set is only as good as its owner's manners: when it is closed, and the program's next file or socket
gets that number, the engine would wake for it, and read from it or write to it. A duplicate is the engine's alone. It
is made when an edge is attached and closed when it is detached.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable
from typing import Protocol


def eventfds(count: int) -> list[int]:
    """All of them or, when it raises OSError, none."""
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
    """`select.poll` or `select.epoll`, which use the same flags."""

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


class Polled:
    """By the numbers of their owners, which are what events are translated back to."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._own: dict[int, int] = {}
        self._lent: dict[int, int] = {}

    def add(self, lent: int) -> None:
        """Poll it for reading. Raises OSError: EBADF, EMFILE; nothing changed then."""
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
        """All of them or, when it raises OSError, none."""
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
        """Its owner may have put something else under the number since."""
        with contextlib.suppress(KeyError, OSError):
            os.dup2(lent, self._own[lent], inheritable=False)

    def pause(self, lent: int) -> None:
        """Keep it without polling it."""
        if (own := self._own.get(lent)) is not None:
            with contextlib.suppress(KeyError, OSError):
                self._poller.unregister(own)

    def resume(self, lent: int) -> None:
        if (own := self._own.get(lent)) is not None:
            with contextlib.suppress(FileExistsError):
                self._poller.register(own, select.POLLIN)

    def discard(self, lent: int) -> None:
        """Poll it no longer; nothing happens if it was not polled."""
        self.pause(lent)
        own = self._own.pop(lent, None)
        if own is not None:
            del self._lent[own]
            os.close(own)

    def close(self) -> None:
        for lent in list(self._own):
            self.discard(lent)

    def lent(self, own: int) -> int | None:
        """The owner's number for a descriptor of ours; None for one that is not polled here."""
        return self._lent.get(own)
