"""Detect that two tunnels on this host use the same private key.

A peer keeps one session per key, so two tunnels with the same key take it from each other, and both seem broken. Each
tunnel binds an abstract Unix socket named after its public key. The kernel gives a name to one socket only, keeps names
per network namespace, and frees them with the process, so that nothing is left behind. A table does the same for
tunnels of this process in different namespaces. The second tunnel logs a warning and works anyway.

Another user of this host who knows the public key could bind the name too, and would only cause a warning.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import struct
import weakref
from pathlib import Path

from wyrmhole.protocol.keys import PublicKey

PREFIX = "\0wyrmhole-key-"
BACKLOG = 64
"""The number of tunnels that can ask for the holder of a name. Further ones do not learn it."""
MAX_NAME = 64
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)


class KeyClaim:
    """A claim on a key, until it is released."""

    def __init__(self, name: str, sock: socket.socket | None) -> None:
        self.name = name
        self._sock = sock
        self.is_released = False
        _claims.add(self)

    def release(self) -> None:
        """Release the claim. Idempotent and thread-safe."""
        self.is_released = True
        if self._sock is not None:
            self._sock.close()
            self._sock = None


_claims: weakref.WeakSet[KeyClaim] = weakref.WeakSet()
"""The claims of this process."""


def claim(key: PublicKey) -> KeyClaim:
    """Claim a key for a tunnel, and log a warning if another tunnel uses it. Never raises OSError, never waits."""
    name = PREFIX + hashlib.sha256(b"wyrmhole one key" + key.raw).hexdigest()[:32]
    is_own = any(other.name == name and not other.is_released for other in list(_claims))
    sock, other = _bind(name)
    if is_own or other is not None:
        holder = "another tunnel of this process" if is_own or other == os.getpid() else _process(other or 0)
        log.warning(
            "%s uses the private key of this tunnel (public key %s): a peer keeps one session per key, so each takes "
            "it from the other; share one tunnel, or give each its own key",
            holder,
            key.base64(),
        )
    return KeyClaim(name, sock)


def _bind(name: str) -> tuple[socket.socket | None, int | None]:
    """Return our socket, or the process that holds the name, which is 0 if it is unknown."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return None, None
    try:
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        return None, _holder(name) if error.errno == errno.EADDRINUSE else None
    return sock, None


def _holder(name: str) -> int:
    """Return the process that listens on the name, according to the kernel."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(name)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0
    return int(_CREDENTIALS.unpack(credentials)[0])


def _process(number: int) -> str:
    if not number:
        return "another process on this host"
    try:
        name = Path(f"/proc/{number}/comm").read_text(errors="replace").strip()[:MAX_NAME]
    except OSError:
        return f"process {number} on this host"
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return f"process {number} on this host ({shown})"


def _release_in_fork() -> None:
    """Release all claims in a forked child, whose copies of the sockets would keep the names."""
    for each in list(_claims):
        each.release()


os.register_at_fork(after_in_child=_release_in_fork)
