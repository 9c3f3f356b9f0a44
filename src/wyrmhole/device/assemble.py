"""Assemble a device from its parts (clock, engine, edges), in the same order for every program.

    device = make_device(tun)
    try:
        await device.start(change)

The daemon, whose TUN comes up later, calls `device.begin()` instead of `start`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from wyrmhole.device.clock import SystemClock
from wyrmhole.device.device import Device
from wyrmhole.engine.select import EngineUnavailable, NativeOptions, select_engine
from wyrmhole.errors import DeviceError
from wyrmhole.net.bind import Bind
from wyrmhole.net.tun import Tun
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.protocol.constants import Timings
from wyrmhole.protocol.events import Event


def make_device(
    tun: Tun,
    *,
    bind_factory: Callable[[], Bind] = UdpBind,
    engine: str = "auto",
    options: NativeOptions | None = None,
    timings: Timings | None = None,
    logger: logging.Logger | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Device:
    """Create a device that owns `tun`.

    Raises DeviceError if the engine is not available, and OSError. Then the caller still owns `tun`.
    """
    clock = SystemClock()
    try:
        chosen, reason = select_engine(engine, clock=clock.boottime, options=options)
    except EngineUnavailable as error:
        raise DeviceError(str(error)) from error
    try:
        return Device(
            tun,
            bind_factory,
            chosen,
            engine_reason=reason,
            clock=clock,
            timings=timings,
            logger=logger,
            on_event=on_event,
        )
    except BaseException:
        chosen.close()
        raise
