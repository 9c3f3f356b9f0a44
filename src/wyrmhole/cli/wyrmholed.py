"""wyrmholed: the daemon that wg(8) and wg-quick(8) drive in the place of wireguard-go.

    wyrmholed [-f|--foreground] [--engine auto|portable|native] INTERFACE

Environment, as for wireguard-go: LOG_LEVEL (verbose, debug, error, silent), WG_PROCESS_FOREGROUND=1, WG_TUN_FD (an
open TUN), WG_UAPI_FD (a listening Unix socket). It ends, with status 0, on SIGTERM and SIGINT, when the interface is
deleted, and when its socket's file is removed.

Starting is a visible wait of `wg-quick up`: what is imported here is little, the rest comes when it is needed.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from wyrmhole.errors import DeviceError

if TYPE_CHECKING:
    import asyncio
    from argparse import ArgumentParser
    from logging import Logger

    from wyrmhole.control.uapi_socket import UapiListener
    from wyrmhole.engine.contract import Engine
    from wyrmhole.net.tun import Tun

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RETRIES = 50
RETRY_SECONDS = 0.02
"""Together a second: how long a former daemon of the same name, on its way out, is waited for."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    name: str
    foreground: bool
    engine: str
    log_level: str
    tun_fd: int | None
    uapi_fd: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a part could not be had, 2 wrong usage."""
    settings = parse_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
    try:
        return run(settings)
    except DeviceError as error:
        print(f"wyrmholed: {error}", file=sys.stderr)
        return 1


# Settings


def parse_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Raises SystemExit: 2 for a usage error, 0 after --help and --version."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"wyrmholed: {message}; see wyrmholed --help\n")

    parser = Parser("wyrmholed", description="A user-space daemon for the WireGuard protocol.", allow_abbrev=False)
    parser.add_argument("-f", "--foreground", action="store_true", help="stay attached, log to stdout")
    parser.add_argument(
        "--engine", choices=("auto", "portable", "native"), default="auto", help="what moves the packets"
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("name", metavar="INTERFACE", nargs="?", help="name of the interface to make")
    options = parser.parse_args(arguments)
    if options.version:
        print(version_text())
        parser.exit()
    if options.name is None:
        parser.error("INTERFACE is missing")
    return Settings(
        name=options.name,
        foreground=options.foreground or environ.get("WG_PROCESS_FOREGROUND") == "1",
        engine=options.engine,
        log_level=environ.get("LOG_LEVEL", ""),
        tun_fd=_parse_fd(parser, environ, "WG_TUN_FD"),
        uapi_fd=_parse_fd(parser, environ, "WG_UAPI_FD"),
    )


def _parse_fd(parser: ArgumentParser, environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        parser.error(f"{variable} is not the number of a descriptor")
    return int(text) if text else None


def version_text() -> str:
    # Only asked for here: it takes longer to import than the rest of this module.
    from importlib.metadata import version

    system = os.uname()
    return (
        f"wyrmholed {version('wyrmhole')}\n\n"
        f"A user-space daemon for the WireGuard protocol, on {system.sysname} {system.machine}, "
        f"Python {sys.version.partition(' ')[0]}."
    )


# Parts


def run(settings: Settings) -> int:
    """Make the parts in the order in which they fail, go to the background, serve. Raises DeviceError."""
    from wyrmhole.cli.daemonize import go_to_background, inherited_descriptors, open_standard_descriptors

    # Nothing made while starting is garbage; `serve` turns the collector on.
    gc.disable()
    open_standard_descriptors()
    inherited = inherited_descriptors() - {settings.tun_fd, settings.uapi_fd}
    forbid_core_dumps()
    # A signal in the middle of setting up would leave the socket's file behind; `serve` lets them come.
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    tun = open_tun(settings)
    try:
        listener = open_listener(settings, tun.name)
    except BaseException:
        tun.close()
        raise
    if settings.foreground:
        return run_loop(settings, tun, listener, announce=lambda: None)
    keep_output = settings.log_level not in ("", "silent")
    readiness = go_to_background(keep_output=keep_output, close=inherited)
    try:
        return run_loop(settings, tun, listener, announce=readiness.announce)
    except Exception as error:
        readiness.fail(str(error) if isinstance(error, DeviceError) else f"cannot start: {error!r}")
        return 1


def open_tun(settings: Settings) -> Tun:
    from wyrmhole.net.linux_tun import LinuxTun

    try:
        if settings.tun_fd is not None:
            return LinuxTun.from_fd(settings.tun_fd)
        return patiently(lambda: LinuxTun.create(settings.name), _is_busy)
    except OSError as error:
        raise DeviceError(error.strerror or str(error)) from error


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EBUSY


def open_listener(settings: Settings, name: str) -> UapiListener:
    from wyrmhole.control.uapi_socket import SocketInUse, UapiListener

    if settings.uapi_fd is not None:
        return UapiListener.from_fd(settings.uapi_fd)
    return patiently(lambda: UapiListener.create(name), lambda error: isinstance(error, SocketInUse))


def patiently(make: Callable[[], _T], is_passing: Callable[[Exception], bool]) -> _T:
    """Try again for a while as long as the failure is one that a daemon on its way out causes."""
    for _ in range(RETRIES):
        try:
            return make()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(RETRY_SECONDS)
    return make()


def forbid_core_dumps() -> None:
    """The process holds private keys. The limit is for files, the flag also for handlers that get cores by a pipe."""
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_dumpable = 4  # PR_SET_DUMPABLE
    ctypes.CDLL(None).prctl(set_dumpable, 0, 0, 0, 0)


# Life


def run_loop(settings: Settings, tun: Tun, listener: UapiListener, announce: Callable[[], None]) -> int:
    """Serve until something ends it. Whatever happens, the socket's file is gone afterwards. Raises DeviceError."""
    import asyncio

    from wyrmhole.cli.log_lines import LEVELS, set_up_logging

    logger = set_up_logging(tun.name, LEVELS.get(settings.log_level, LEVELS["error"]))
    try:
        return asyncio.run(serve(settings, tun, listener, logger, announce))
    finally:
        listener.close()
        tun.close()


async def serve(
    settings: Settings, tun: Tun, listener: UapiListener, logger: Logger, announce: Callable[[], None]
) -> int:
    """Be the daemon. `announce` is called once clients are answered. Raises DeviceError."""
    from wyrmhole.control.uapi_server import UapiServer
    from wyrmhole.device.clock import SystemClock
    from wyrmhole.device.device import Device
    from wyrmhole.net.udp_bind import UdpBind

    clock = SystemClock()
    engine, reason = make_engine(settings.engine, clock.boottime)
    logger.debug("%s", reason)
    device = Device(tun, UdpBind, engine, clock=clock, logger=logger)
    server = UapiServer(device, listener, logger=logger)
    try:
        await device.start()
        server.start()
        signalled = watch_signals()
        # What is imported never becomes garbage. And nothing per packet makes cycles, but a look at 100,000 peers
        # holds packets up, so garbage is looked for more rarely.
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)
        gc.enable()
        announce()
        logger.debug("Device started")
        await first_of(signalled.wait(), device.wait_closed(), server.wait_ended())
        logger.debug("Ending")
    finally:
        # The file goes last: who waits for it to vanish finds the interface gone too.
        server.stop()
        await device.close()
        await server.close()
    return 1 if device.failure else 0


def make_engine(kind: str, clock: Callable[[], int]) -> tuple[Engine, str]:
    from wyrmhole.engine.select import EngineUnavailable, select_engine

    try:
        return select_engine(kind, clock=clock)
    except EngineUnavailable as error:
        raise DeviceError(str(error)) from error


def watch_signals() -> asyncio.Event:
    """The event is set when the process is told to end, also if that was before this call."""
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
