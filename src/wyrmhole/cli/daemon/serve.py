"""Give up the rights that are not needed, and run the device and its UAPI server until the end.

`start` imports this module after its last fork. Everything that a running daemon uses is imported before the privileges
are dropped.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from logging import Logger

from wyrmhole.cli.daemon.daemonize import END_SIGNALS
from wyrmhole.cli.daemon.service_manager import ServiceManager, take_service_manager
from wyrmhole.cli.daemon.settings import DaemonSettings
from wyrmhole.cli.log_lines import LEVELS, set_up_logging
from wyrmhole.control.uapi.server import UapiServer
from wyrmhole.control.uapi.socket import UapiListener
from wyrmhole.device.assemble import make_device
from wyrmhole.engine.select import NativeOptions
from wyrmhole.errors import DeviceError
from wyrmhole.net.linux_tun import LinuxTun
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.protocol.primitives import dh, seal_handshake, xseal
from wyrmhole.sandbox.confine import User, drop_privileges, restrict_calls
from wyrmhole.sandbox.landlock import allow_reading_only, needed_paths

USED_LATER = ("encodings.idna", "traceback", "wyrmhole.engine.portable", "wyrmhole.engine.native")
"""Modules that others import when they first need them."""


def serve(
    settings: DaemonSettings, user: User | None, tun: LinuxTun, listener: UapiListener, announce: Callable[[], None]
) -> int:
    """Serve until the end, and return the daemon's status. Raises DeviceError."""
    manager = take_service_manager()
    logger = set_up_logging(tun.name, LEVELS.get(settings.log_level, LEVELS["error"]))
    try:
        if settings.is_confined:
            confine(user, listener)
        if settings.sandbox:
            restrict_files(logger)
        return asyncio.run(run_device(settings, tun, listener, logger, announce, manager))
    finally:
        manager.close()


# Confinement


def import_parts() -> None:
    """Import all modules that will be used, because another user, or root without privileges, may not read their files.

    The libraries are used once, because they import further modules on first use.
    """
    for name in USED_LATER:
        # A missing engine is reported, with its reason, by its selection.
        with suppress(ImportError):
            import_module(name)
    "x".encode("idna")
    key = PrivateKey(bytes(range(32)))
    shared = dh(key.exchange_key, key.public_key().raw)
    seal_handshake(shared, b"", b"")
    xseal(shared, bytes(24), b"", b"")


def confine(user: User | None, listener: UapiListener) -> None:
    """Become `user`, and keep only the privileges that later commands need. Raises DeviceError."""
    import_parts()
    if user is not None and listener.file_id is not None:
        # The owner may watch the file, and the caretaker connect. The server itself decides which clients it serves.
        os.chown(listener.path, user.uid, -1)
        os.chmod(listener.path, 0o660)
    drop_privileges(user)


def restrict(logger: Logger) -> None:
    """Install the system call filter. Without it, the daemon logs an error and serves anyway."""
    try:
        restrict_calls()
    except DeviceError as error:
        logger.error("%s", error)


def restrict_files(logger: Logger) -> None:
    """Restrict files by Landlock, which older kernels and containers lack. No thread may exist."""
    try:
        logger.debug("Files are confined by Landlock, version %d", allow_reading_only(needed_paths()))
    except OSError as error:
        logger.debug("Files are not confined: Landlock is not available: %s", error.strerror)


# Serving


async def run_device(
    settings: DaemonSettings,
    tun: LinuxTun,
    listener: UapiListener,
    logger: Logger,
    announce: Callable[[], None],
    manager: ServiceManager,
) -> int:
    """Run the device and its UAPI server. `announce` is called when clients can be served. Raises DeviceError."""
    device = make_device(
        tun,
        bind_factory=lambda: make_bind(settings),
        engine=settings.engine,
        options=NativeOptions(settings.workers, settings.aead, spins="spin" not in settings.without),
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


def make_bind(settings: DaemonSettings) -> UdpBind:
    return UdpBind(gso="gso" not in settings.without, gro="gro" not in settings.without, shares=settings.workers)


def watch_signals() -> asyncio.Event:
    """Return an event that is set by a signal to end, also one that arrived before this call."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in END_SIGNALS:
        loop.add_signal_handler(number, signalled.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    return signalled


async def first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def steering_warning(tun: LinuxTun) -> str | None:
    """Return a warning if the kernel may move flows between the queues of a TUN."""
    if tun.unsteered is None:
        return None
    return (
        "Packets of one flow may be reordered: the program that keeps a flow on one worker is not available "
        f"({tun.unsteered.strerror}); use one worker if order matters"
    )
