"""Notices that two tunnels of this host use one private key.

A peer keeps one session per key, so two tunnels with the same one take it from each other, and both seem broken. Each
tunnel binds an abstract Unix socket named after its public key: the kernel lets only one have the name, keeps names per
network namespace, and frees them with the process, so that nothing is ever left behind. A table does the same for
tunnels of this process in different namespaces. Whoever comes second is warned and works all the same.

Others on this host could bind a name of this kind too, if they know the public key: the worst they cause is a warning.
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
"""Tunnels that may ask who has the name; those after them are not told."""
MAX_NAME = 64
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)


class KeyClaim:
    """A key in use, until it is released."""

    def __init__(self, name: str, sock: socket.socket | None) -> None:
        self.name = name
        self._sock = sock
        self.is_released = False
        _claims.add(self)

    def release(self) -> None:
        """Idempotent, from any thread."""
        self.is_released = True
        if self._sock is not None:
            self._sock.close()
            self._sock = None


_claims: weakref.WeakSet[KeyClaim] = weakref.WeakSet()
"""Those of this process."""


def claim(key: PublicKey) -> KeyClaim:
    """Note that a tunnel uses this key; log one warning if another one does. Never raises OSError, never waits."""
    name = PREFIX + hashlib.sha256(b"wyrmhole one key" + key.raw).hexdigest()[:32]
    is_own = any(other.name == name and not other.is_released for other in list(_claims))
    sock, other = _bind(name)
    if is_own or other is not None:
        who = "another tunnel of this process" if is_own or other == os.getpid() else _process(other or 0)
        log.warning(
            "%s uses the private key of this tunnel (public key %s): a peer keeps one session per key, so each takes "
            "it from the other; share one tunnel, or give each a key of its own",
            who,
            key.base64(),
        )
    return KeyClaim(name, sock)


def _bind(name: str) -> tuple[socket.socket | None, int | None]:
    """Our socket, or the process that has the name: 0 if that cannot be told."""
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
    """The process that listens there, as the kernel noted it."""
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
    """A fork has copies of the sockets, which would keep the names after its parent closed them."""
    for each in list(_claims):
        each.release()


os.register_at_fork(after_in_child=_release_in_fork)
