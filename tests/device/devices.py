"""Whole devices on one memory network, and a decorator that runs a coroutine as a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from tests.support.packets import ipv4
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.device import Device
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.net.memory_bind import MemoryNetwork
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.events import Event
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


class World:
    """Devices on one memory network; all `devices` are closed at the end."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.devices: list[Device] = []
        self.events: list[Event] = []

    async def device(self, number: int, *, up: bool = True) -> tuple[Device, MemoryTun]:
        clock = SystemClock()
        tun = MemoryTun(f"mem{number}", up=up)
        device = Device(
            tun,
            lambda: self.network.bind(f"192.0.2.{number}"),
            PortableEngine(clock.boottime),
            clock=clock,
            on_event=self.events.append,
        )
        self.devices.append(device)
        device.begin()
        if up:
            await until(lambda: device.is_up)
        return device, tun

    async def pair(self) -> tuple[Device, MemoryTun, Device, MemoryTun]:
        """Return two devices with keys, on ports 1 and 2, that are peers of each other."""
        a, a_tun = await self.device(1)
        b, b_tun = await self.device(2)
        keys = [PrivateKey(os.urandom(32)) for _ in range(2)]
        for number, device in enumerate((a, b)):
            other = 1 - number
            device.configure(
                DeviceChange(
                    private_key=keys[number],
                    listen_port=number + 1,
                    peers=(
                        PeerChange(
                            keys[other].public_key(),
                            endpoint=Endpoint(f"192.0.2.{other + 1}", other + 1),
                            allowed_ips=(AllowedIPChange(Prefix.parse(f"10.0.0.{other + 1}/32")),),
                        ),
                    ),
                )
            )
        return a, a_tun, b, b_tun


def scenario(body: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run the coroutine on its own event loop, then close its devices."""

    async def run() -> None:
        world = World()
        try:
            await asyncio.wait_for(body(world), 30)
        finally:
            for device in world.devices:
                await device.close()

    def test() -> None:
        asyncio.run(run())

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


async def until(condition: Callable[[], object]) -> None:
    """Yield to the event loop until the condition holds, at most for the scenario's timeout."""
    while not condition():
        await asyncio.sleep(0.001)


def packet(source: int, destination: int) -> bytes:
    return ipv4(f"10.0.0.{source}", f"10.0.0.{destination}", b"data")


def peer_change(**changes: object) -> PeerChange:
    return PeerChange(PublicKey(b"\x07" * 32), **changes)  # type: ignore[arg-type]
