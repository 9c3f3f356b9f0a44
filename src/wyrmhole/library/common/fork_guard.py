"""Notice that this process is a fork of the one that made an object, and refuse to use the object here."""

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
        """Whether this is a copy in a child of that process."""
        return os.getpid() != self.pid

    def check(self) -> None:
        """Raises TunnelError in a fork."""
        if self.is_forked:
            raise TunnelError(
                errno.EPERM,
                f"the tunnel belongs to process {self.pid}, of which this is a fork: open another one here "
                "(sockets made before the fork go on)",
            )
