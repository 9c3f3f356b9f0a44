"""Two devices inside this process, on memory TUNs and UDP sockets of loopback: the demo without namespaces.

usage: python examples/demo_memory.py
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time

from wyrmhole.cli import show_text
from wyrmhole.device.assemble import make_device
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.status import DeviceStatus
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

PINGS, PATIENCE = 5, 10.0


class Side:
    """One end: a key, an interface, and its addresses outside and inside the tunnel."""

    def __init__(self, number: int) -> None:
        self.name, self.outer, self.inner = f"demo{number}", f"192.168.77.{number + 1}", f"10.77.0.{number + 1}"
        self.private = PrivateKey(os.urandom(32))

    def as_peer(self, endpoint: Endpoint) -> PeerChange:
        allowed = (AllowedIPChange(Prefix.parse(f"{self.inner}/32")),)
        return PeerChange(self.private.public_key(), endpoint=endpoint, allowed_ips=allowed)


def show(status: DeviceStatus) -> None:
    print("\n" + show_text.plain(show_text.pretty(status, int(time.time()))), end="")


async def memory_demo(left: Side, right: Side) -> None:
    """Run the same protocol and engine between two memory TUNs and two UDP sockets on loopback."""
    tuns = MemoryTun(left.name), MemoryTun(right.name)
    devices = [make_device(tun) for tun in tuns]
    try:
        for device, side in zip(devices, (left, right), strict=True):
            await device.start(DeviceChange(private_key=side.private))
        for device, other, far in zip(devices, (right, left), reversed(devices), strict=True):
            peer = other.as_peer(Endpoint("127.0.0.1", far.status().listen_port))
            device.configure(DeviceChange(peers=(peer,)))
        await memory_traffic(tuns, left, right)
        show(devices[0].status())
    finally:
        for device in devices:
            await device.close()


async def memory_traffic(tuns: tuple[MemoryTun, MemoryTun], left: Side, right: Side) -> None:
    """Send packets in both directions, then many in one. Without a kernel TUN there is no TCP."""
    times = []
    for _ in range(PINGS + 1):
        start = time.perf_counter()
        await pass_packets(tuns, inner_packet(left, right, 84), 1)
        await pass_packets(tuns[::-1], inner_packet(right, left, 84), 1)
        times.append(time.perf_counter() - start)
    print(f"  handshake and first packet {times[0] * 1e3:6.2f} ms")
    print(f"  {PINGS} packets there and back   {sum(times[1:]) / PINGS * 1e3:6.2f} ms")
    count, window, start = 20_000, 64, time.perf_counter()
    for _ in range(count // window):
        await pass_packets(tuns, inner_packet(left, right, 1400), window)
    speed = count * 1400 * 8 / (time.perf_counter() - start) / 1e9
    print(f"  transfer of packets        {speed:6.2f} Gb/s  ({count} of 1400 bytes)")


def inner_packet(source: Side, destination: Side, size: int) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0, 64, 253, 0)
    return header + socket.inet_aton(source.inner) + socket.inet_aton(destination.inner) + bytes(size - 20)


async def pass_packets(tuns: tuple[MemoryTun, ...], packet: bytes, count: int) -> None:
    for _ in range(count):
        tuns[0].inject(packet)
    async with asyncio.timeout(PATIENCE):
        while count:
            try:
                tuns[1].pop()
                count -= 1
            except IndexError:
                await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(memory_demo(Side(0), Side(1)))
