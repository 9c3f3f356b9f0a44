"""The library: the cost of a private namespace relative to an interface of the host, and the cost of its sockets.

    python bench/library.py                        as root; writes a table to docs/benchmarks.md

The far end is another process with its own tunnel, and both are on loopback. The two kinds of tunnel are measured
alternately, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rig import machine, write_section

import wyrmhole
import wyrmhole.sync
from wyrmhole.library.stacks.namespace import NamespaceStack
from wyrmhole.protocol.keys import PrivateKey

NEAR, FAR = "10.88.1.1", "10.88.1.2"
SINK, SOURCE, ECHO = 5001, 5002, 5003
CHUNK = 1 << 18


# The far end, a separate process


def far_end(engine: str) -> None:
    """Print key and port as JSON, and serve until standard input ends."""
    own, peer = PrivateKey(os.urandom(32)), PrivateKey(os.urandom(32))
    text = (
        f"[Interface]\nPrivateKey = {own.base64()}\nAddress = {FAR}/24\n"
        f"[Peer]\nPublicKey = {peer.public_key().base64()}\nAllowedIPs = {NEAR}/32\n"
    )
    with wyrmhole.sync.open(text, engine=engine) as tunnel:
        for service, serve in ((SINK, sink), (SOURCE, source)):
            threading.Thread(target=accept, args=(tunnel.create_server((FAR, service)), serve), daemon=True).start()
        echoing = tunnel.asynchronous.create_server(Echo, FAR, ECHO, backlog=2048)
        asyncio.run_coroutine_threadsafe(echoing, tunnel.loop).result()
        port = tunnel.stats().listen_port
        settings = {"public": own.public_key().base64(), "private": peer.base64(), "port": port}
        print(json.dumps(settings), flush=True)
        sys.stdin.read()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def sink(sock: socket.socket) -> None:
    """Read to the end, then send back the number of bytes."""
    view, total = bytearray(CHUNK), 0
    with sock:
        while length := sock.recv_into(view):
            total += length
        sock.sendall(total.to_bytes(8))


def source(sock: socket.socket) -> None:
    data = bytes(CHUNK)
    with sock:
        try:
            while True:
                sock.sendall(data)
        except OSError:
            return


@contextmanager
def far_process(engine: str) -> Iterator[str]:
    """Run the far end in a process. Yields the near end's configuration."""
    command = [sys.executable, __file__, "--far", "--engine", engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        settings = json.loads(process.stdout.readline())
        try:
            yield (
                f"[Interface]\nPrivateKey = {settings['private']}\nAddress = {NEAR}/24\n"
                f"[Peer]\nPublicKey = {settings['public']}\nAllowedIPs = {FAR}/32\n"
                f"Endpoint = 127.0.0.1:{settings['port']}\n"
            )
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)


# Measurements


def send(tunnel: wyrmhole.sync.Tunnel, seconds: float) -> float:
    """Return the Gb/s that the receiver counted."""
    data = bytes(CHUNK)
    with tunnel.create_connection((FAR, SINK), timeout=30) as sock:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        total = int.from_bytes(sock.recv(8))
        return total * 8 / (time.perf_counter() - begin) / 1e9


def receive(tunnel: wyrmhole.sync.Tunnel, seconds: float) -> float:
    view, total = bytearray(CHUNK), 0
    with tunnel.create_connection((FAR, SOURCE), timeout=30) as sock:
        begin = time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds:
            total += sock.recv_into(view)
        return total * 8 / passed / 1e9


async def concurrent(tunnel: wyrmhole.Tunnel, count: int) -> float:
    """Return the seconds for `count` concurrent connections to open, echo and close."""

    async def one() -> None:
        reader, writer = await tunnel.open_connection(FAR, ECHO)
        writer.write(b"hello")
        await reader.readexactly(5)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return time.perf_counter() - begin


async def sequential(tunnel: wyrmhole.Tunnel, count: int) -> tuple[float, int]:
    """Return the seconds per connection, and the number of leaked descriptors (spare sockets are not counted)."""
    assert isinstance(tunnel.stack, NamespaceStack)
    before = len(os.listdir("/proc/self/fd")) - tunnel.stack.spare_sockets
    begin = time.perf_counter()
    for _ in range(count):
        (await tunnel.connect_socket(FAR, ECHO)).close()
    passed = time.perf_counter() - begin
    return passed / count, len(os.listdir("/proc/self/fd")) - tunnel.stack.spare_sockets - before


async def first_byte(text: str, engine: str) -> tuple[float, float]:
    """Return the seconds until `open` returns and until the first byte came back. Modules are already imported."""
    begin = time.perf_counter()
    async with wyrmhole.open(text, engine=engine) as tunnel:
        opened = time.perf_counter()
        reader, writer = await tunnel.open_connection(FAR, ECHO)
        writer.write(b"!")
        await reader.readexactly(1)
        done = time.perf_counter()
        writer.close()
        return opened - begin, done - begin


def throughput(text: str, engine: str, rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for stack, options in (("namespace", {}), ("interface", {"device": "tun"})):
            wait_for_quiet()
            with wyrmhole.sync.open(text, engine=engine, **options) as tunnel:
                tunnel.wait_handshake(30)
                for direction, measure in (("send", send), ("receive", receive)):
                    found.setdefault(stack, {}).setdefault(direction, []).append(measure(tunnel, seconds))
    return found


def wait_for_quiet() -> None:
    """Wait while the file named by BENCH_WAIT_WHILE exists: a hook for machines that are shared."""
    while os.path.exists(os.environ.get("BENCH_WAIT_WHILE", "/nonexistent")):
        time.sleep(1)


def measure(engine: str, options: argparse.Namespace) -> list[str]:
    """Measure everything with one engine. Return rows of the table."""
    with far_process(engine) as text:
        speeds = throughput(text, engine, options.rounds, options.seconds)
        starts = [asyncio.run(first_byte(text, engine)) for _ in range(options.rounds * 2 + 1)]

        async def connections() -> tuple[list[float], float, int]:
            async with wyrmhole.open(text, engine=engine) as tunnel:
                await tunnel.wait_handshake(30)
                at_once = [await concurrent(tunnel, 1000) for _ in range(options.rounds)]
                return (at_once, *(await sequential(tunnel, options.connects)))

        at_once, each, leaked = asyncio.run(connections())
    rows = []

    def row(name: str, measured: str, target: str) -> None:
        rows.append(f"| {engine} | {name} | {measured} | {target} |")

    for direction in ("send", "receive"):
        rootless, root = (statistics.median(speeds[stack][direction]) for stack in ("namespace", "interface"))
        ratio = f"{rootless / root:.2f} of the interface's {root:.2f}"
        row(f"TCP, {direction}", f"{rootless:.2f} Gb/s, {ratio}", "0.9 of it")
    opened, answered = (statistics.median(start[part] for start in starts) * 1e3 for part in (0, 1))
    row("`open()`; time to the first byte received", f"{opened:.0f} ms; {answered:.0f} ms", "150 ms")
    row("1,000 concurrent connections: open, echo, close", f"{statistics.median(at_once):.2f} s", "1 s")
    in_turn = f"{each * 1e6:.0f} us each, {leaked} descriptors left"
    row(f"{options.connects:,} connections one after the other", in_turn, "none left")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-s", "--seconds", type=float, default=1.5)
    parser.add_argument("-c", "--connects", type=int, default=10_000)
    parser.add_argument("--engine", action="append", choices=("native", "portable"))
    parser.add_argument("--far", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    engines = options.engine or ["native", "portable"]
    if options.far:
        far_end(engines[0])
        return
    lines = [
        f"`python bench/library.py -r {options.rounds} -s {options.seconds}`, medians. {machine()}. Both ends are "
        "on loopback, the far end in a separate process. The first rate is that of the private namespace, which needs "
        'no privileges; "the interface\'s" is that of an interface of the host (`device="tun"`), with the same engine '
        "and TCP settings.",
        "",
        "| engine | measurement | result | target |",
        "|---|---|---|---|",
    ]
    for engine in engines:
        rows = measure(engine, options)
        print("\n".join(rows), flush=True)
        lines += rows
    if not options.no_write:
        write_section("The library", lines)


if __name__ == "__main__":
    main()
