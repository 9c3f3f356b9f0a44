"""How many descriptors the services of this process may hold together, so that the program itself never runs out.

A quarter of the limit (RLIMIT_NOFILE), and 128 where it is small, stays with the program: its files, its tunnels, the
questions for names and the sockets that a tunnel makes ahead. The limit is read anew each time, for programs raise it.
"""

from __future__ import annotations

import resource
import threading

RESERVE = 128
UNLIMITED = 1 << 20


def nofile() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft in (resource.RLIM_INFINITY, -1) else soft


def room() -> int:
    """What all services may hold."""
    limit = nofile()
    return limit - max(limit // 4, min(RESERVE, limit // 2))


class Budget:
    """From any thread: tunnels live on loops of several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, count: int) -> bool:
        """Whether there was room for so many more."""
        with self._lock:
            if self._taken + count > room():
                return False
            self._taken += count
            return True

    def give(self, count: int) -> None:
        with self._lock:
            self._taken -= count


SERVICES = Budget()
