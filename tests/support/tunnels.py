"""Two tunnels of this process that are peers over loopback, and shared helpers for tests on them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest
import uvloop

import wyrmhole
from wyrmhole.library.stacks.namespace import NamespaceStack
from wyrmhole.protocol.keys import PrivateKey

PATIENCE = 30.0
"""Limit in seconds for a scenario, many times what one takes."""
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
NEAR_V4, NEAR_V6 = "10.66.0.1", "fd66::1"
FAR_V4, FAR_V6 = "10.66.0.2", "fd66::2"
FAR = {4: FAR_V4, 6: FAR_V6}
NOBODY_V4 = "10.66.0.99"
"""An address within the far end's allowed ips that no host has."""
NEAR_OPTIONS: dict[str, Any] = {}
"""Options of `wyrmhole.open` for each near end, besides those of a scenario; see the fixture `device`."""

T = TypeVar("T")
Scenario = Coroutine[Any, Any, T]

on_each_loop = pytest.mark.parametrize("loop", list(LOOPS))
on_each_family = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])


def run(scenario: Scenario[T], loop: str = "asyncio", patience: float = PATIENCE) -> T:
    """Run a scenario. Raises TimeoutError if it hangs."""

    async def limited() -> T:
        async with asyncio.timeout(patience):
            return await scenario

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(limited())


def generate() -> PrivateKey:
    return PrivateKey(os.urandom(32))


def far_config(own: PrivateKey, peer: PrivateKey, more: str = "") -> str:
    return (
        f"[Interface]\nPrivateKey = {own.base64()}\nAddress = {FAR_V4}/24, {FAR_V6}/64\n{more}"
        f"[Peer]\n# friendly_name = near\nPublicKey = {peer.public_key().base64()}\n"
        f"AllowedIPs = {NEAR_V4}/32, {NEAR_V6}/128\n"
    )


def near_config(own: PrivateKey, peer: PrivateKey, port: int, more: str = "", host: str = "127.0.0.1") -> str:
    return (
        f"[Interface]\nPrivateKey = {own.base64()}\nAddress = {NEAR_V4}/24, {NEAR_V6}/64\n{more}"
        f"[Peer]\n# friendly_name = far\nPublicKey = {peer.public_key().base64()}\n"
        f"AllowedIPs = {FAR_V4}/24, {FAR_V6}/64\nEndpoint = {host}:{port}\n"
    )


@dataclass
class Ends:
    near: wyrmhole.Tunnel
    far: wyrmhole.Tunnel
    near_text: str
    """The configuration of the near end."""


@asynccontextmanager
async def tunnels(near_more: str = "", **options: Any) -> AsyncIterator[Ends]:
    """Open both tunnels. `near_more` are lines for the near [Interface], `options` are those of `wyrmhole.open`."""
    near_key, far_key = generate(), generate()
    async with wyrmhole.open(far_config(far_key, near_key)) as far:
        text = near_config(near_key, far_key, far.stats().listen_port, near_more)
        async with wyrmhole.open(text, **{**NEAR_OPTIONS, **options}) as near:
            yield Ends(near, far, text)


def sockets_of(*tunnels: wyrmhole.Tunnel) -> int:
    """Return the number of sockets of this process, without those that these tunnels made in advance."""
    spares = sum(tunnel.stack.spare_sockets for tunnel in tunnels if isinstance(tunnel.stack, NamespaceStack))
    return len([entry for entry in open_descriptors() if "socket:" in entry]) - spares


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    finally:
        writer.close()


def open_descriptors() -> set[str]:
    """Return the descriptors of this process and their targets.

    Eventfds are left out, because that of the native engine is closed later, with its object.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue
    return {entry for entry in found if "[eventfd]" not in entry}


class Collect(asyncio.DatagramProtocol):
    """Collects datagrams. With `answer`, each is echoed."""

    def __init__(self, *, answer: bool = False) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self._answer = answer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    async def answer_to(self, payload: bytes) -> bytes:
        """Return the answer. The question is repeated every second, because datagrams may be lost."""
        assert self._transport is not None
        while True:
            self._transport.sendto(payload)
            try:
                async with asyncio.timeout(1):
                    return (await self.received.get())[0]
            except TimeoutError:
                continue

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))
        if self._answer and self._transport is not None:
            self._transport.sendto(data, addr)
