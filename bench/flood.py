"""The performance of a tunnel under floods of unproven senders.

A client (a) and a server (b) have a tunnel. An attacker (c) on another link of the server sends prebuilt datagrams at a
given rate, from one or many addresses. For each kind of flood, the benchmark measures:

- goodput: TCP through the tunnel under the flood, relative to the same measurement (for `-t` seconds) with the flood
  sent to a socket that nobody reads;
- honest: how many of 100 new peers, each with its own address, get a session at the same time by at most two
  initiations 5 s apart (the second with the cookie, if the first earned one);
- memory: the growth of the server; answers: bytes sent back per byte of the flood.

Measurements begin 3 s after the flood. Rates are multiples of the number of handshakes per second that the portable
engine answers (bench/handshakes.py).

usage: python bench/flood.py [-x TIMES ...] [-k KIND ...] [-t SECONDS] [--results FILE] [NAME ...]
       python bench/flood.py --write FILE           (root; after `make test-deps`; results are appended to FILE)
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blaster import udp_frame, write_frames
from rig import IMPLEMENTATIONS, ROOT, End, ends, machine, sh

from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.protocol.data_plane import HandshakeDatagram
from wyrmhole.protocol.exchange import Completed, Exchange
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.protocol.primitives import mac
from wyrmhole.wire.endpoint import Endpoint

CAPACITY = 4000
NAMES = {
    **IMPLEMENTATIONS,
    "portable": IMPLEMENTATIONS["wyrmhole"].replace("-f", "-f --engine portable"),
    "native": IMPLEMENTATIONS["wyrmhole"].replace("-f", "-f --engine native"),
}
HONEST = 100
HONEST_INTERVAL = 0.02
RETRY = 5.0
WAIT = 4.9
SETTLE = 3.0
"""Seconds from the beginning of a flood to the measurement."""
DISCARD_PORT = 9
SPOOFED = 65_536
ATTACKER, TARGET = ("10.66.0.1", "2001:db8:66::1"), ("10.66.0.2", "2001:db8:66::2")

Macs = tuple[bytes, bytes]
Frames = Callable[[int], list[bytes]]
"""Frames for a destination port: that of the server, or that of the socket that nobody reads."""


@dataclass
class Result:
    name: str
    kind: str
    times: float
    rate: float
    """Datagrams per second that were actually sent."""
    control: float
    """Gb/s while the flood was discarded."""
    goodput: float
    honest: int
    first_try: int
    memory_kib: int
    answers: float
    machine: str = field(default_factory=machine)


# The attacker's side


@contextlib.contextmanager
def attacker(b: End) -> Iterator[str]:
    """Make a namespace with a link to the server. The server has static routes to all spoofed addresses."""
    name = b.namespace.removesuffix("-b") + "-c"
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "link", "add", "v1", "netns", name, "type", "veth", "peer", "name", "v1", "netns", b.namespace)
        for namespace, addresses in ((name, ATTACKER), (b.namespace, TARGET)):
            sh("ip", "-n", namespace, "link", "set", "v1", "up")
            sh("ip", "-n", namespace, "address", "add", f"{addresses[0]}/24", "dev", "v1")
            sh("ip", "-n", namespace, "address", "add", f"{addresses[1]}/64", "dev", "v1", "nodad")
        hardware = mac_of(name).hex(":")
        for address in ATTACKER:
            sh(
                "ip",
                "-n",
                b.namespace,
                "neigh",
                "replace",
                address,
                "lladdr",
                hardware,
                "dev",
                "v1",
                "nud",
                "permanent",
            )
        sh("ip", "-n", b.namespace, "route", "add", "10.128.0.0/9", "via", ATTACKER[0])
        sh("ip", "-n", b.namespace, "-6", "route", "add", "2001:db8:77::/64", "via", ATTACKER[1])
        yield name
    finally:
        sh("ip", "netns", "del", name, check=False)


def link_status(namespace: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(sh("ip", "-n", namespace, "-s", "-j", "link", "show", "v1"))[0]
    return status


def mac_of(namespace: str) -> bytes:
    return bytes.fromhex(link_status(namespace)["address"].replace(":", ""))


def false_initiation(public: str, *, mac1: bool) -> bytes:
    """Return random bytes as an initiation, with a valid or invalid mac1."""
    body = b"\1\0\0\0" + os.urandom(112)
    return body + (mac(mac1_key(PublicKey.from_base64(public)), body) if mac1 else os.urandom(16)) + bytes(16)


def many_v4(number: int) -> str:
    return f"10.{128 + (number >> 14)}.{number >> 6 & 255}.{1 + (number & 63)}"


def one_64(number: int) -> str:
    return f"2001:db8:77::{number >> 8:x}:{number & 255:x}"


def flood_frames(kind: str, macs: Macs, b: End, genuine: list[bytes], index: int) -> Frames:
    """Return a function that builds all frames in advance, so that the attacker does not build them while flooding."""
    dice = random.Random(1)
    if kind == "transport, bad tag":
        payloads = [struct.pack("<IIQ", 4, index, 10_000_000 + n) + dice.randbytes(1280) for n in range(1024)]
    elif kind == "replayed initiations":
        payloads = genuine
    else:
        payloads = [false_initiation(b.public, mac1=kind != "bad mac1") for _ in range(SPOOFED)]
    family = 1 if kind == "good mac1, one /64" else 0
    address = {"good mac1, 65,536 sources": many_v4, "good mac1, one /64": one_64}.get(kind, lambda _: ATTACKER[family])

    def frames(port: int) -> list[bytes]:
        return [
            udp_frame(macs, (address(number), 1024 + number % 60_000), (TARGET[family], port), payload)
            for number, payload in enumerate(payloads)
        ]

    return frames


KINDS = (
    "bad mac1",
    "good mac1, one source",
    "good mac1, 65,536 sources",
    "good mac1, one /64",
    "replayed initiations",
    "transport, bad tag",
)


@contextlib.contextmanager
def flooding(namespace: str, file: Path, rate: float) -> Iterator[Callable[[], float]]:
    """Flood inside the block. Afterwards the yielded function returns the datagrams sent per second."""
    words = ["ip", "netns", "exec", namespace, sys.executable, str(ROOT / "bench" / "blaster.py")]
    process = subprocess.Popen(
        [*words, "v1", str(file), str(rate), "600"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    output = ""

    def sent() -> float:
        count, seconds = output.split()
        return int(count) / float(seconds)

    try:
        assert process.stdout.readline() == "ready\n"
        yield sent
    finally:
        process.terminate()
        output = process.communicate()[0]


# The tunnel's side


def goodput(a: End, b: End, seconds: float) -> float:
    """Return the Gb/s that arrive."""
    out = a.exec("iperf3", "-J", "-c", b.inner, "-t", str(seconds), "-O", "0.3", seconds=seconds + 30, check=False)
    report = json.loads(out)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9 if "error" not in report else 0.0


def live_index(a: End, b: End) -> int:
    """Capture the server's receiver index of the present session on the link."""
    script = (
        "import socket\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)); s.bind(('v0', 3)); s.settimeout(10)\n"
        "while True:\n"
        "    p, at = s.recvfrom(65536)\n"
        "    if at[2] == 4 and p[9:10] == b'\\x11' and p[28:32] == b'\\4\\0\\0\\0': break\n"
        "print(int.from_bytes(p[32:36], 'little'))\n"
    )
    words = ["ip", "netns", "exec", a.namespace, sys.executable, "-c", script]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.poll() is None:
        a.exec("ping", "-c", "1", "-W", "1", b.inner)
    return int(process.stdout.read())


class HonestPeer:
    """A client with its own address that sends up to two initiations, the second with the cookie of a reply."""

    def __init__(self, key: PrivateKey, server: PublicKey, address: str, target: tuple[str, int]) -> None:
        self._exchange = Exchange(PeerStore(), os.urandom, time.time_ns)
        self._exchange.set_private_key(key)
        self._peer = self._exchange.peers.create(server)
        self._target = Endpoint.from_sockaddr(target)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((address, 0))
        self.socket.connect(target)
        self.tries = 0
        self.is_connected = False

    def try_once(self) -> None:
        self.tries += 1
        message = self._exchange.create_initiation(self._peer, time.monotonic_ns())
        assert message is not None
        with contextlib.suppress(OSError):
            self.socket.send(message)

    def receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = self.socket.recv(2048)
                outcome = self._exchange.consume(HandshakeDatagram(data, self._target, None, 0), time.monotonic_ns())
                if isinstance(outcome, Completed):
                    self.is_connected = True


def connect_all(keys_file: str, public: str, target: str, port: int) -> tuple[int, int]:
    """Connect all honest peers, inside the client's namespace.

    Return how many needed one initiation, and at most two.
    """
    raw = Path(keys_file).read_bytes()
    keys = [PrivateKey(raw[at : at + 32]) for at in range(0, len(raw), 32)]
    server = PublicKey.from_base64(public)
    peers = [HonestPeer(key, server, f"10.99.1.{n}", (target, port)) for n, key in enumerate(keys, 1)]
    poll = select.poll()
    by_fd = {peer.socket.fileno(): peer for peer in peers}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    start = time.monotonic()
    starts = [(start + n * HONEST_INTERVAL, peer) for n, peer in enumerate(peers)]
    plan = sorted([*starts, *((at + RETRY, peer) for at, peer in starts)], key=lambda entry: entry[0])
    for due, peer in [*plan, (plan[-1][0] + WAIT, None)]:
        while (left := due - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                by_fd[fd].receive()
        if peer is not None and not peer.is_connected:
            peer.try_once()
    first = sum(peer.is_connected and peer.tries == 1 for peer in peers)
    return first, sum(peer.is_connected for peer in peers)


@contextlib.contextmanager
def honest_peers(a: End, b: End, keys_file: Path) -> Iterator[Callable[[], tuple[int, int]]]:
    """Connect honest peers while the block runs. The yielded function waits for them and returns both counts."""
    words = [
        "ip",
        "netns",
        "exec",
        a.namespace,
        sys.executable,
        __file__,
        "--connect",
        str(keys_file),
        b.public,
        b.outer,
    ]
    process = subprocess.Popen([*words, str(b.port)], stdout=subprocess.PIPE, text=True)

    def connected() -> tuple[int, int]:
        first, second = process.communicate(timeout=60)[0].split()
        return int(first), int(second)

    try:
        yield connected
    finally:
        if sys.exc_info()[0] is not None:
            process.kill()


def add_peers(b: End, keys: list[PrivateKey]) -> None:
    b.exec(
        "wg",
        "addconf",
        b.name,
        "/dev/stdin",
        stdin="".join(f"[Peer]\nPublicKey = {key.public_key().base64()}\n" for key in keys),
    )


def genuine_initiations(b: End, keys: list[PrivateKey]) -> list[bytes]:
    made = []
    for key in keys:
        exchange = Exchange(PeerStore(), os.urandom, time.time_ns)
        exchange.set_private_key(key)
        message = exchange.create_initiation(exchange.peers.create(PublicKey.from_base64(b.public)), 0)
        assert message is not None
        made.append(message)
    return made


@contextlib.contextmanager
def tunnel(command: str) -> Iterator[tuple[End, End]]:
    """Start a connected client and server of that implementation, with an iperf3 server."""
    with ends() as (a, b):
        for end in (a, b):
            end.start(command)
        a.know(b)
        b.know(a)
        a.exec("ping", "-c", "1", "-W", "5", b.inner)
        for number in range(1, HONEST + 1):
            sh("ip", "-n", a.namespace, "address", "add", f"10.99.1.{number}/32", "dev", "v0")
        sh("ip", "-n", b.namespace, "route", "add", "10.99.1.0/24", "dev", "v0")
        words = ["ip", "netns", "exec", b.namespace, "iperf3", "-s", "-B", b.inner]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while ":5201" not in b.exec("ss", "-ltn"):
                if server.poll() is not None:
                    raise RuntimeError("iperf3 ended before it listened")
                time.sleep(0.02)
            yield a, b
        finally:
            server.kill()
            server.wait()


def discard(b: End) -> subprocess.Popen[bytes]:
    """Start a process that holds a socket of both families and never reads it."""
    script = (
        f"import socket, time; s = socket.socket(socket.AF_INET6, 2); s.bind(('::', {DISCARD_PORT})); time.sleep(900)"
    )
    process = subprocess.Popen(["ip", "netns", "exec", b.namespace, sys.executable, "-c", script])
    while f":{DISCARD_PORT} " not in b.exec("ss", "-lun"):
        time.sleep(0.02)
    return process


def one(name: str, kind: str, times: float, seconds: float, folder: Path) -> Result:
    """Measure one kind of flood against one implementation."""
    honest, known = ([PrivateKey(os.urandom(32)) for _ in range(count)] for count in (HONEST, 200))
    keys_file = folder / "keys"
    keys_file.write_bytes(b"".join(key.raw for key in honest))
    with tunnel(NAMES[name]) as (a, b), attacker(b) as c:
        add_peers(b, [*honest, *known])
        macs = (mac_of(b.namespace), mac_of(c))
        frames = flood_frames(kind, macs, b, genuine_initiations(b, known), live_index(a, b))
        for file, port in (("flood", b.port), ("control", DISCARD_PORT)):
            write_frames(folder / file, frames(port))
        sink = discard(b)
        try:
            return measure(Result(name, kind, times, 0, 0, 0, 0, 0, 0, 0), a, b, c, seconds, folder)
        finally:
            sink.kill()
            sink.wait()


def measure(result: Result, a: End, b: End, c: str, seconds: float, folder: Path) -> Result:
    goodput(a, b, 1.0)
    memory, before = b.resident_mb(), link_status(b.namespace)["stats64"]
    with flooding(c, folder / "control", result.times * CAPACITY):
        time.sleep(SETTLE)
        result.control = goodput(a, b, seconds)
    between = link_status(b.namespace)["stats64"]
    with flooding(c, folder / "flood", result.times * CAPACITY) as rate:
        time.sleep(SETTLE)
        with honest_peers(a, b, folder / "keys") as connected:
            result.goodput = goodput(a, b, HONEST * HONEST_INTERVAL + RETRY + WAIT)
        result.first_try, result.honest = connected()
    after = link_status(b.namespace)["stats64"]
    result.rate = rate()
    result.memory_kib = round((b.resident_mb() - memory) * 1024)
    answered = after["tx"]["bytes"] - before["tx"]["bytes"]
    result.answers = answered / (after["rx"]["bytes"] - between["rx"]["bytes"])
    return result


# The table


def table(results: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(result["name"] for result in results))
    lines = [
        f"`python bench/flood.py` (as root, after `make test-deps`). {results[-1]['machine']}; client, server, attacker"
        f" and iperf3 share them. 1x is {CAPACITY:,} datagrams per second, about the number of handshakes that the"
        " portable engine can answer; 10x is ten times that. Each cell gives: TCP goodput relative to a control run"
        " (the same flood at a socket that nobody reads), with both values in Gb/s in parentheses; how many of 100"
        " honest new peers had a session after one initiation and after at most two; growth of resident memory; bytes"
        " answered per byte of the flood.",
    ]
    for times in sorted({result["times"] for result in results}):
        lines += ["", f"### {times:g}x", "", "| flood | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for kind in KINDS:
            matching = [result for result in results if result["kind"] == kind and result["times"] == times]
            found = {result["name"]: result for result in matching}
            if found:
                lines.append(f"| {kind} | " + " | ".join(cell(found.get(name)) for name in names) + " |")
    return lines


def cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    goodput, control = result["goodput"], result["control"]
    ratio = goodput / control if control else 0.0
    return (
        f"**{ratio:.2f}** ({goodput:.2f}/{control:.2f}); {result['first_try']}, {result['honest']} of 100;"
        f" {result['memory_kib'] / 1024:+.1f} MiB; {result['answers']:.2f}"
    )


def write_section(lines: list[str]) -> None:
    """Replace the section "Floods" of docs/reliability.md, but keep the notes below its tables."""
    path = ROOT / "docs" / "reliability.md"
    text = path.read_text() if path.exists() else "# Reliability\n"
    head, marker, rest = text.partition("\n## Floods\n")
    tail = rest[rest.index("\n## ") :] if marker and "\n## " in rest else ""
    notes = rest[: len(rest) - len(tail)].partition("\n### Notes\n")[2] if marker else ""
    kept = f"\n### Notes\n{notes.rstrip()}\n" if notes else ""
    path.write_text(f"{head.rstrip()}\n\n## Floods\n\n" + "\n".join(lines).rstrip() + "\n" + kept + tail)


def main() -> None:
    if sys.argv[1:2] == ["--connect"]:
        keys_file, public, target, port = sys.argv[2:]
        print(*connect_all(keys_file, public, target, int(port)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-x", "--times", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("-k", "--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("-t", "--seconds", type=float, default=5.0)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("names", nargs="*", default=["wyrmhole", "wireguard-go", "boringtun"])
    options = parser.parse_args()
    if options.write is not None:
        write_section(table([json.loads(line) for line in options.write.read_text().splitlines()]))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for times, kind, name in itertools.product(options.times, options.kinds, options.names):
            results.append(asdict(one(name, kind, times, options.seconds, Path(folder))))
            print(f"# {times:g}x {kind}: {name}: {results[-1]['rate']:.0f}/s {cell(results[-1])}", flush=True)
            if options.results is not None:
                with options.results.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    if options.results is None:
        write_section(table(results))


if __name__ == "__main__":
    main()
