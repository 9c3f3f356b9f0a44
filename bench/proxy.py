"""The cost of the proxy: one TCP stream through a tunnel, on a socket of the tunnel itself and through SOCKS5.

One namespace has a tunnel of the library, the other a daemon. In each case a separate program moves the bytes. It
receives a connected socket: one of the tunnel, or one whose other end is the proxy or a forward. The cases alternate.

usage, as root: python bench/proxy.py [-r ROUNDS] [-t SECONDS] [-e ENGINE ...] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from rig import IMPLEMENTATIONS, End, ends, machine, sh, write_section

import wyrmhole

PORT = 7000
TITLE = "The proxy"
SERVER = """
import socket, sys, time
listener = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
block = bytearray(1 << 18)
while True:
    sock, _ = listener.accept()
    direction = sock.recv(1)
    try:
        while sock.recv_into(block) if direction == b"u" else sock.sendall(block) is None:
            pass
    except OSError:
        pass
    sock.close()
"""
MOVER = """
import socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
direction, seconds = sys.argv[2], float(sys.argv[3])
sock.sendall(direction.encode())
block, moved, start = bytearray(1 << 18), 0, time.monotonic()
while (now := time.monotonic()) < start + seconds:
    moved += sock.recv_into(block) if direction == "d" else sock.send(block)
print(moved * 8 / (now - start) / 1e9)
"""
NOTE = """The target is that the proxy costs at most 25 %. SOCKS5 and forward move bytes with the same code, so any
difference between them is noise."""
DIRECTIONS = {"u": "sending", "d": "receiving"}


# In the namespace of the library


async def measure(config: str, host: str, engine: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the Gb/s of each round, by direction and path."""
    results: dict[str, list[float]] = {}
    async with wyrmhole.open(config, engine=engine) as tunnel, tunnel_paths(tunnel, host) as paths:
        for _ in range(rounds):
            for direction in DIRECTIONS:
                for name, connect in paths.items():
                    with await connect() as sock:
                        speed = await move(sock, direction, seconds)
                    results.setdefault(f"{direction} {name}", []).append(speed)
    return results


Connect = Callable[[], Coroutine[Any, Any, socket.socket]]


@contextlib.asynccontextmanager
async def tunnel_paths(tunnel: Any, host: str) -> AsyncIterator[dict[str, Connect]]:
    """Yield functions that return a socket connected to the server, by the name of the path."""
    loop = asyncio.get_running_loop()
    async with (
        await tunnel.proxy("127.0.0.1:0") as proxy,
        await tunnel.forward("127.0.0.1:0", f"{host}:{PORT}") as forward,
    ):

        async def direct() -> socket.socket:
            sock: socket.socket = await tunnel.connect_socket(host, PORT)
            return sock

        async def near(address: tuple[str, int]) -> socket.socket:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            return sock

        async def by_socks() -> socket.socket:
            sock = await near(proxy.addresses[0])
            request = b"\5\1\0\1" + socket.inet_aton(host) + PORT.to_bytes(2)
            await loop.sock_sendall(sock, b"\5\1\0" + request)
            answer = b""
            while len(answer) < 2 + 10:
                answer += await loop.sock_recv(sock, 12 - len(answer))
            return sock

        async def by_forward() -> socket.socket:
            return await near(forward.addresses[0])

        yield {"direct": direct, "SOCKS5": by_socks, "forward": by_forward}


async def move(sock: socket.socket, direction: str, seconds: float) -> float:
    words = [sys.executable, "-I", "-S", "-c", MOVER, str(sock.fileno()), direction, str(seconds)]
    mover = await asyncio.create_subprocess_exec(*words, pass_fds=[sock.fileno()], stdout=subprocess.PIPE)
    out, _ = await mover.communicate()
    return float(out)


# In the caller's namespace


@contextlib.contextmanager
def server(end: End) -> Iterator[None]:
    words = ["ip", "netns", "exec", end.namespace, sys.executable, "-I", "-S", "-c", SERVER, str(PORT)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def run(engine: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    with ends() as (a, b), tempfile.TemporaryDirectory() as folder:
        b.start(IMPLEMENTATIONS["wyrmhole"].replace("-f", f"-f --engine {engine}"))
        private = sh("wg", "genkey").strip()
        public = sh("wg", "pubkey", stdin=private).strip()
        b.exec("wg", "set", b.name, "peer", public, "allowed-ips", f"{a.inner}/32")
        config = Path(folder, "tunnel.conf")
        config.touch(mode=0o600)
        config.write_text(
            f"[Interface]\nPrivateKey = {private}\nAddress = {a.inner}/24\n\n"
            f"[Peer]\nPublicKey = {b.public}\nAllowedIPs = {b.inner}/32\nEndpoint = {b.outer}:{b.port}\n"
        )
        with server(b):
            words = [
                sys.executable,
                __file__,
                "--inside",
                str(config),
                b.inner,
                engine,
                "-r",
                str(rounds),
                "-t",
                str(seconds),
            ]
            out = a.exec(*words, seconds=60 + rounds * 6 * (seconds + 2))
    results: dict[str, list[float]] = json.loads(out.splitlines()[-1])
    return results


def heading(rounds: int, seconds: float) -> list[str]:
    return [
        f"`python bench/proxy.py -r {rounds} -t {seconds:g}`, medians of {rounds} interleaved rounds. {machine()}.",
        "",
        "| one TCP stream, Gb/s | direct | SOCKS5 | forward | SOCKS5 over direct | forward over direct |",
        "|---|---|---|---|---|---|",
    ]


def rows(engine: str, results: dict[str, list[float]]) -> list[str]:
    """Return rows of the table. Each ratio is the median of the ratios of all rounds."""
    lines = []
    for direction, name in DIRECTIONS.items():
        speeds = [statistics.median(results[f"{direction} {path}"]) for path in ("direct", "SOCKS5", "forward")]
        ratios = [
            statistics.median(
                one / other
                for one, other in zip(results[f"{direction} {path}"], results[f"{direction} direct"], strict=True)
            )
            for path in ("SOCKS5", "forward")
        ]
        cells = [*(f"{speed:.2f}" for speed in speeds), *(f"{ratio:.2f}x" for ratio in ratios)]
        lines.append(f"| {engine} engine, {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-r", type=int, default=5, dest="rounds")
    parser.add_argument("-t", type=float, default=2.0, dest="seconds")
    parser.add_argument("-e", nargs="+", default=["native", "portable"], dest="engines", metavar="ENGINE")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        config, host, engine = options.inside
        print(json.dumps(asyncio.run(measure(config, host, engine, options.rounds, options.seconds))))
        return
    lines = heading(options.rounds, options.seconds)
    for engine in options.engines:
        lines += rows(engine, run(engine, options.rounds, options.seconds))
    lines += ["", NOTE]
    print("\n".join(lines))
    if options.write:
        write_section(TITLE, lines)


if __name__ == "__main__":
    main()
