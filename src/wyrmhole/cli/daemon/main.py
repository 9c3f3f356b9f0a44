"""wyrmholed: the daemon that wg(8) and wg-quick(8) use instead of wireguard-go.

    wyrmholed [-f|--foreground] [--engine auto|portable|native] [--workers N] [--aead auto|aws-lc|vector]
              [--without WHAT[,WHAT]...] [--user NAME] [--no-sandbox] INTERFACE

The environment is that of wireguard-go: LOG_LEVEL (verbose, debug, error, silent), WG_PROCESS_FOREGROUND=1, WG_TUN_FD
(an open TUN), WG_UAPI_FD (a listening Unix socket). wg-quick passes no options, so each has a variable too:
WYRMHOLE_ENGINE, WYRMHOLE_WORKERS, WYRMHOLE_AEAD, WYRMHOLE_WITHOUT, WYRMHOLE_USER, WYRMHOLE_SANDBOX=off. It ends with
status 0 on SIGTERM and SIGINT, when the interface is deleted, and when its socket file is removed.

After the start, it gives up all rights that it does not need (see docs/security.md), and reports to a service manager.

`wg-quick up` waits for the start, so this module imports little, and the rest when it is needed.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from wyrmhole.cli.daemon.settings import DaemonSettings, parse_settings
from wyrmhole.errors import DeviceError
from wyrmhole.wire.messages import DEFAULT_MTU

if TYPE_CHECKING:
    import asyncio
    from logging import Logger

    from wyrmhole.cli.daemon.caretaker import Caretaker
    from wyrmhole.cli.daemon.service_manager import ServiceManager
    from wyrmhole.control.uapi.socket import UapiListener
    from wyrmhole.net.bind import Bind
    from wyrmhole.net.tun import Tun
    from wyrmhole.sandbox.confine import User

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RETRIES = 50
RETRY_SECONDS = 0.02
"""Together one second, the limit of the wait for a former daemon of the same name that is about to end."""

_T = TypeVar("_T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon and return its status: 0 at a normal end, 1 for a missing resource or argument, 2 for a bad
    option."""
    settings = parse_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
    try:
        return run(settings)
    except DeviceError as error:
        print(f"wyrmholed: {error}", file=sys.stderr)
        return 1


# Resources


def run(settings: DaemonSettings) -> int:
    """Open the resources that can fail, go to the background, and serve. Raises DeviceError."""
    from wyrmhole.cli.daemon.daemonize import go_to_background, inherited_descriptors, open_standard_descriptors
    from wyrmhole.sandbox.confine import find_user, forbid_dumps

    # The start creates no garbage; `serve` enables the collector.
    gc.disable()
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
        return run_loop(settings, user, tun, listener, announce=lambda: None)
    keep_output = settings.log_level not in ("", "silent")
    readiness = go_to_background(keep_output=keep_output, close=inherited)
    try:
        return run_loop(settings, user, tun, listener, announce=readiness.announce)
    except Exception as error:
        readiness.fail(str(error) if isinstance(error, DeviceError) else f"cannot start: {error!r}")
        return 1


def open_tun(settings: DaemonSettings) -> Tun:
    from wyrmhole.net.linux_tun import LinuxTun

    tso, uso, steering = (name not in settings.without for name in ("tso", "uso", "steering"))
    try:
        if settings.tun_fd is not None:
            return LinuxTun.from_fd(settings.tun_fd, tso=tso, uso=uso, mtu=DEFAULT_MTU)
        return retry_briefly(
            lambda: LinuxTun.create(settings.name, tso=tso, uso=uso, queues=settings.queues, steering=steering),
            _is_busy,
        )
    except OSError as error:
        raise DeviceError(error.strerror or str(error)) from error


def steering_warning(tun: Tun) -> str | None:
    """Return a warning if the kernel may move flows between the queues of a TUN."""
    from wyrmhole.net.linux_tun import LinuxTun

    if not isinstance(tun, LinuxTun) or tun.unsteered is None:
        return None
    return (
        "Packets of one flow may be reordered: the program that keeps a flow on one worker is not available "
        f"({tun.unsteered.strerror}); use one worker if order matters"
    )


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EBUSY


def open_listener(settings: DaemonSettings, name: str) -> UapiListener:
    from wyrmhole.control.uapi.socket import SocketInUse, UapiListener

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


def import_parts() -> None:
    """Import all modules that will be used, because another user, or root without privileges, may not read their files.

    The libraries are used once, because they import further modules on first use.
    """
    import encodings.idna  # noqa: F401
    import importlib
    import traceback  # noqa: F401
    from contextlib import suppress

    import wyrmhole.control.uapi.server
    import wyrmhole.device.assemble
    import wyrmhole.engine.portable
    import wyrmhole.engine.select
    import wyrmhole.net.udp_bind
    import wyrmhole.sandbox.landlock  # noqa: F401
    from wyrmhole.protocol.keys import PrivateKey
    from wyrmhole.protocol.primitives import dh, seal_handshake, xseal

    with suppress(ImportError):
        importlib.import_module("wyrmhole.engine.native")
    "x".encode("idna")
    key = PrivateKey(bytes(range(32)))
    shared = dh(key.exchange_key, key.public_key().raw)
    seal_handshake(shared, b"", b"")
    xseal(shared, bytes(24), b"", b"")


def confine(settings: DaemonSettings, user: User | None, listener: UapiListener) -> Caretaker | None:
    """Become `user`, and keep only the privileges that later commands need. Raises DeviceError.

    Returns the caretaker that removes the socket file, or None if the daemon itself removes it.
    """
    from wyrmhole.sandbox.confine import drop_privileges

    if user is None and not settings.sandbox:
        return None
    # The caretaker is forked first, because it needs little memory while few modules are imported.
    caretaker = None if listener.file_id is None else take_care_of(listener.path)
    import_parts()
    if user is not None and listener.file_id is not None:
        # The owner may watch the file, and the caretaker connect. The server itself decides which clients it serves.
        os.chown(listener.path, user.uid, -1)
        os.chmod(listener.path, 0o660)
    drop_privileges(user)
    return caretaker


def take_care_of(path: str) -> Caretaker | None:
    """Fork a caretaker that may remove the socket file. Return None if not even this process may."""
    from wyrmhole.cli.daemon.caretaker import leave_caretaker
    from wyrmhole.control.uapi.socket import SocketInUse, remove_if_dead
    from wyrmhole.sandbox.confine import drop_privileges

    if not os.access(os.path.dirname(path), os.W_OK, effective_ids=True):
        return None

    def remove(is_closed: bool) -> None:
        # The pipe of a killed process may be closed before its listening socket.
        retry_briefly(lambda: remove_if_dead(path), lambda error: isinstance(error, SocketInUse) and not is_closed)

    return leave_caretaker(remove, lambda: drop_privileges(None, kept=frozenset()))


def restrict(logger: Logger) -> None:
    """Install the system call filter. Without it, the daemon logs an error and serves anyway."""
    from wyrmhole.sandbox.confine import restrict_calls

    try:
        restrict_calls()
    except DeviceError as error:
        logger.error("%s", error)


def restrict_files(logger: Logger) -> None:
    """Restrict files by Landlock, which older kernels and containers lack. No thread may exist."""
    from wyrmhole.sandbox.landlock import allow_reading_only, needed_paths

    try:
        logger.debug("Files are confined by Landlock, version %d", allow_reading_only(needed_paths()))
    except OSError as error:
        logger.debug("Files are not confined: Landlock is not available: %s", error.strerror)


# Serving


def run_loop(
    settings: DaemonSettings, user: User | None, tun: Tun, listener: UapiListener, announce: Callable[[], None]
) -> int:
    """Serve until the end. The socket file is removed in any case. Raises DeviceError."""
    import asyncio

    from wyrmhole.cli.daemon.service_manager import take_service_manager
    from wyrmhole.cli.log_lines import LEVELS, set_up_logging

    manager = take_service_manager()
    logger = set_up_logging(tun.name, LEVELS.get(settings.log_level, LEVELS["error"]))
    caretaker = None
    try:
        caretaker = confine(settings, user, listener)
        if settings.sandbox:
            restrict_files(logger)
        return asyncio.run(serve(settings, tun, listener, logger, announce, manager))
    finally:
        manager.close()
        listener.close()
        tun.close()
        if caretaker is not None:
            caretaker.finish()


async def serve(
    settings: DaemonSettings,
    tun: Tun,
    listener: UapiListener,
    logger: Logger,
    announce: Callable[[], None],
    manager: ServiceManager,
) -> int:
    """Run the device and its UAPI server. `announce` is called when clients can be served. Raises DeviceError."""
    import asyncio

    from wyrmhole.control.uapi.server import UapiServer
    from wyrmhole.device.assemble import make_device
    from wyrmhole.engine.select import NativeOptions

    device = make_device(
        tun,
        bind_factory=lambda: make_bind(settings),
        engine=settings.engine,
        options=NativeOptions(settings.queues, settings.aead, spins="spin" not in settings.without),
        logger=logger,
    )
    logger.debug("%s", device.engine_reason)
    if warning := steering_warning(tun):
        logger.error("%s", warning)
    server = UapiServer(device, listener, logger=logger)
    try:
        device.begin()
        server.start()
        signalled = watch_signals()
        # Imported modules never become garbage. Packets create no cycles, and a collection over 100,000 peers would
        # delay them, so the collector runs less often.
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)
        gc.enable()
        if settings.sandbox:
            restrict(logger)
        announce()
        manager.report("READY=1")
        feeding = asyncio.ensure_future(manager.feed(device.applied))
        logger.debug("Device started")
        await first_of(signalled.wait(), device.wait_closed(), server.wait_ended())
        feeding.cancel()
        manager.report("STOPPING=1")
        logger.debug("Ending")
    finally:
        # The file is removed last: a program that waits for its removal then finds the interface removed too.
        server.stop()
        await device.close()
        await server.close()
    return 1 if device.failure else 0


def make_bind(settings: DaemonSettings) -> Bind:
    from wyrmhole.net.udp_bind import UdpBind

    return UdpBind(gso="gso" not in settings.without, gro="gro" not in settings.without, shares=settings.queues)


def watch_signals() -> asyncio.Event:
    """Return an event that is set by a signal to end, also one that arrived before this call."""
    import asyncio

    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in END_SIGNALS:
        loop.add_signal_handler(number, signalled.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    return signalled


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    import asyncio

    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    sys.exit(main())
