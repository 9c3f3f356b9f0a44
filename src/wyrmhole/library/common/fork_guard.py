"""Detect that this process is a fork of the one that made an object, and refuse to use the object."""

from __future__ import annotations

import errno
import os

from wyrmhole.errors import TunnelError


class ForkGuard:
    """Remembers the process that makes it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this object is a copy in a child of that process."""
        return os.getpid() != self.pid

    def check(self) -> None:
        """Raises TunnelError in a fork."""
        if self.is_forked:
            raise TunnelError(
                errno.EPERM,
                f"cannot use the tunnel of process {self.pid} in a fork of it: open another one here "
                "(sockets made before the fork still work)",
            )
