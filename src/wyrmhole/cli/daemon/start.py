"""Open the resources that can fail, go to the background, and leave a caretaker: all that comes before the loop.

`wg-quick up` waits for the start, and two processes are forked during it. So this module imports little; `serve`, which
imports the device and the event loop, is imported after the last fork.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from wyrmhole.cli.daemon.caretaker import Caretaker, leave_caretaker
from wyrmhole.cli.daemon.daemonize import (
    END_SIGNALS,
    go_to_background,
    inherited_descriptors,
    open_standard_descriptors,
)
from wyrmhole.cli.daemon.settings import DaemonSettings
from wyrmhole.control.uapi.socket import SocketInUse, UapiListener, remove_if_dead
from wyrmhole.engine.select import has_native
from wyrmhole.errors import DeviceError
from wyrmhole.net.linux_tun import LinuxTun
from wyrmhole.sandbox.confine import User, drop_privileges, find_user, forbid_dumps
from wyrmhole.wire.messages import DEFAULT_MTU

RETRIES = 50
RETRY_SECONDS = 0.02
"""Together one second, the limit of the wait for a former daemon of the same name that is about to end."""

_T = TypeVar("_T")


def run(settings: DaemonSettings) -> int:
    """Open the resources that can fail, go to the background, and serve. Raises DeviceError."""
    # The start creates no garbage; `serve` enables the collector.
    gc.disable()
    settings = replace(settings, workers=workers_of(settings))
    open_standard_descriptors()
    inherited = inherited_descriptors() - {settings.tun_fd, settings.uapi_fd}
    forbid_dumps()
    # The look-up of a user may use the network, so it comes before signals are blocked.
    user = None if settings.user is None else find_user(settings.user)
    # A signal during the setup would leave the socket file behind; `serve` unblocks them. Nothing in between may wait
    # without a limit.
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    tun = open_tun(settings)
    try:
        listener = open_listener(settings, tun.name)
    except BaseException:
        tun.close()
        raise
    if settings.foreground:
        return hold(settings, user, tun, listener, announce=lambda: None)
    keep_output = settings.log_level not in ("", "silent")
    readiness = go_to_background(keep_output=keep_output, close=inherited)
    try:
        return hold(settings, user, tun, listener, announce=readiness.announce)
    except Exception as error:
        readiness.fail(str(error) if isinstance(error, DeviceError) else f"cannot start: {error!r}")
        return 1


def workers_of(settings: DaemonSettings) -> int:
    """Return the number of workers, each with a TUN queue and a socket that shares the port. An inherited TUN has one
    queue, and the portable engine one thread."""
    if settings.workers == 1 or settings.engine == "portable" or settings.tun_fd is not None:
        return 1
    return settings.workers if has_native() else 1


def hold(
    settings: DaemonSettings, user: User | None, tun: LinuxTun, listener: UapiListener, announce: Callable[[], None]
) -> int:
    """Serve until the end, then release the interface and its socket file in any case. Raises DeviceError."""
    caretaker = None
    try:
        # The caretaker is forked first, because it needs little memory while few modules are imported.
        if settings.is_confined and listener.file_id is not None:
            caretaker = take_care_of(listener.path)
        from wyrmhole.cli.daemon.serve import serve

        return serve(settings, user, tun, listener, announce)
    finally:
        listener.close()
        tun.close()
        if caretaker is not None:
            caretaker.finish()


# Resources


def open_tun(settings: DaemonSettings) -> LinuxTun:
    tso, uso, steering = (name not in settings.without for name in ("tso", "uso", "steering"))
    try:
        if settings.tun_fd is not None:
            return LinuxTun.from_fd(settings.tun_fd, tso=tso, uso=uso, mtu=DEFAULT_MTU)
        return retry_briefly(
            lambda: LinuxTun.create(settings.name, tso=tso, uso=uso, queues=settings.workers, steering=steering),
            _is_busy,
        )
    except OSError as error:
        raise DeviceError(error.strerror or str(error)) from error


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EBUSY


def open_listener(settings: DaemonSettings, name: str) -> UapiListener:
    if settings.uapi_fd is not None:
        return UapiListener.from_fd(settings.uapi_fd)
    return retry_briefly(lambda: UapiListener.create(name), lambda error: isinstance(error, SocketInUse))


def retry_briefly(make: Callable[[], _T], is_temporary: Callable[[Exception], bool]) -> _T:
    """Retry for up to a second while the failure is one that a former daemon, about to end, causes."""
    for _ in range(RETRIES):
        try:
            return make()
        except Exception as error:
            if not is_temporary(error):
                raise
        time.sleep(RETRY_SECONDS)
    return make()


def take_care_of(path: str) -> Caretaker | None:
    """Fork a caretaker that may remove the socket file. Return None if not even this process may."""
    if not os.access(os.path.dirname(path), os.W_OK, effective_ids=True):
        return None

    def remove(is_closed: bool) -> None:
        # The pipe of a killed process may be closed before its listening socket.
        retry_briefly(lambda: remove_if_dead(path), lambda error: isinstance(error, SocketInUse) and not is_closed)

    return leave_caretaker(remove, lambda: drop_privileges(None, kept=frozenset()))
