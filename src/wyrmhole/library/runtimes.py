"""Detect programs whose standard library was replaced.

gevent and eventlet replace threads, sockets, polling and subprocesses with versions that all run in one thread. A
tunnel needs the originals, because it runs in threads of its own.
"""

from __future__ import annotations

import errno
import sys

from wyrmhole.errors import TunnelError

_GEVENT = ("select", "socket", "threading", "subprocess")
_EVENTLET = ("select", "socket", "thread", "subprocess")


def check_runtime() -> None:
    """Raises TunnelError in a program in which a tunnel would hang or fail with an unrelated error."""
    patched = _gevent() or _eventlet()
    if patched is not None:
        library, module = patched
        raise TunnelError(
            errno.EOPNOTSUPP,
            f"cannot open a tunnel in a program that {library} has patched ({module!r} is replaced): "
            "run `wyrmhole proxy` or `wyrmhole forward` as a separate process and connect to it, "
            "or open the tunnel in a process without patches",
        )


def _gevent() -> tuple[str, str] | None:
    monkey = sys.modules.get("gevent.monkey")
    return next((("gevent", name) for name in _GEVENT if monkey and monkey.is_module_patched(name)), None)


def _eventlet() -> tuple[str, str] | None:
    patcher = sys.modules.get("eventlet.patcher")
    return next((("eventlet", name) for name in _EVENTLET if patcher and patcher.is_monkey_patched(name)), None)
