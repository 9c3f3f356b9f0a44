"""The budget of descriptors that all services of this process share, so that the program itself never runs out.

A quarter of the limit (RLIMIT_NOFILE), or 128 if the limit is small, is reserved for the program: its files and
tunnels, DNS queries, and the sockets that a tunnel opens in advance. The limit is read each time, because programs
raise it.
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
    """Return the number of descriptors for all services."""
    limit = nofile()
    return limit - max(limit // 4, min(RESERVE, limit // 2))


class Budget:
    """A counter of descriptors in use. It is thread-safe, because tunnels may run on loops of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, count: int) -> bool:
        """Reserve descriptors. Return False if there is no room for them."""
        with self._lock:
            if self._taken + count > room():
                return False
            self._taken += count
            return True

    def release(self, count: int) -> None:
        with self._lock:
            self._taken -= count


SERVICES = Budget()
