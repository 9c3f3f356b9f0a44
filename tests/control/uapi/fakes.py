"""A device that only records changes, and a client of the UAPI socket."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wyrmhole.control.uapi.server import UapiServer
from wyrmhole.control.uapi.socket import UapiListener
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus
from wyrmhole.errors import ConfigError
from wyrmhole.protocol.keys import PresharedKey, PublicKey
from wyrmhole.wire.prefix import Prefix

TAKEN_PORT = 7


class FakeDevice:
    def __init__(self, peers: int = 0) -> None:
        self.port = 1
        self.changes: list[DeviceChange] = []
        self.peers = tuple(
            PeerStatus(
                PublicKey(number.to_bytes(32, "big")),
                PresharedKey(bytes(32)),
                None,
                (0, 0),
                0,
                0,
                0,
                (Prefix(4, number, 32),),
            )
            for number in range(peers)
        )
        self.breaks = False
        self.drops = DropCounts({}, {})

    def configure(self, change: DeviceChange) -> None:
        if self.breaks:
            raise RuntimeError("a bug")
        if change.listen_port == TAKEN_PORT:
            raise ConfigError(errno.EADDRINUSE, "the port is taken")
        self.changes.append(change)
        if change.listen_port is not None:
            self.port = change.listen_port

    async def applied(self) -> None: ...

    def status(self) -> DeviceStatus:
        return DeviceStatus("wg0", None, self.port, 0, 1420, self.peers)

    def drop_counts(self) -> DropCounts:
        return self.drops


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: str) -> Client:
        return cls(*await asyncio.open_unix_connection(path))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_reply(self) -> str:
        """Read one reply, up to its blank line."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\n\n"), 10)).decode()

    async def ask(self, text: str) -> str:
        await self.write(text.encode())
        return await self.read_reply()

    async def is_closed(self) -> bool:
        """Wait for the end of the connection. Return False if data arrived instead."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 10) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def serving(
    directory: Path,
    device: FakeDevice,
    *,
    max_clients: int = 64,
    stall_seconds: float = 60,
    idle_seconds: float = 10,
) -> AsyncIterator[UapiServer]:
    listener = UapiListener.create("wg0", str(directory))
    server = UapiServer(
        device, listener, max_clients=max_clients, stall_seconds=stall_seconds, idle_seconds=idle_seconds
    )
    server.start()
    try:
        yield server
    finally:
        await server.close()
