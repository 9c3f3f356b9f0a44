"""Handshakes answered per second: valid initiations of many peers, sent as fast as they are answered.

A generator process makes the initiations in advance, one for each configured peer, and then keeps a window of them in
flight. Each peer is used once, because a second initiation within 20 ms would be refused. The results are the responses
per second, and the daemon's CPU time for each.

usage: python bench/handshakes.py [-n PEERS] [-r ROUNDS] [--no-write] [NAME ...]     (root; after `make test-deps`)
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rig import IMPLEMENTATIONS, ends, machine, write_section

from wyrmhole.protocol.exchange import Exchange
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.peer_store import PeerStore

WINDOW = 48
"""Initiations in flight: fewer than the 128 queued messages at which a receiver counts as under load."""


def initiations(keys: list[PrivateKey], target: PublicKey) -> list[bytes]:
    made = []
    for key in keys:
        exchange = Exchange(PeerStore(), os.urandom, time.time_ns)
        exchange.set_private_key(key)
        message = exchange.create_initiation(exchange.peers.create(target), 0)
        assert message is not None
        made.append(message)
    return made


def send_all(messages: list[bytes], target: tuple[str, int]) -> tuple[int, float]:
    """Send all messages. Return the number of responses and the seconds that they took."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect(target)
        sock.setblocking(False)
        answered = sent = 0
        start = last = time.perf_counter()
        while answered < len(messages) and time.perf_counter() - last < 1.0:
            while sent < len(messages) and sent - answered < WINDOW:
                sock.send(messages[sent])
                sent += 1
            if not select.select([sock], [], [], 0.2)[0]:
                continue
            try:
                while True:
                    answered += sock.recv(2048)[0] == 2
            except BlockingIOError:
                last = time.perf_counter()
        return answered, last - start


def generate(namespace: str, keys_file: str, public: str, target: str, port: int) -> tuple[int, float]:
    """Run this file as the generator inside the other namespace."""
    command = ["ip", "netns", "exec", namespace, sys.executable, __file__, "--generate", keys_file, public, target]
    out = subprocess.run([*command, str(port)], capture_output=True, text=True, check=True, timeout=300).stdout
    answered, seconds = out.split()
    return int(answered), float(seconds)


def one(command: str, count: int, folder: Path) -> dict[str, float]:
    keys = [PrivateKey(os.urandom(32)) for _ in range(count)]
    keys_file = folder / "keys"
    keys_file.write_bytes(b"".join(key.raw for key in keys))
    with ends() as (a, b):
        b.start(command)
        text = "".join(f"[Peer]\nPublicKey = {key.public_key().base64()}\n" for key in keys)
        b.exec("wg", "addconf", b.name, "/dev/stdin", stdin=text)
        before = b.cpu_seconds()
        answered, seconds = generate(a.namespace, str(keys_file), b.public, b.outer, b.port)
        cpu = b.cpu_seconds() - before
    return {"rate": answered / seconds, "answered": answered / count, "cpu_us": cpu / max(answered, 1) * 1e6}


def main() -> None:
    if sys.argv[1:2] == ["--generate"]:
        keys_file, public, target, port = sys.argv[2:]
        raw = Path(keys_file).read_bytes()
        keys = [PrivateKey(raw[at : at + 32]) for at in range(0, len(raw), 32)]
        print(*send_all(initiations(keys, PublicKey.from_base64(public)), (target, int(port))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--peers", type=int, default=10_000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("names", nargs="*", default=["wyrmhole", "wireguard-go"])
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.names}
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in options.names:
                results[name].append(one(IMPLEMENTATIONS[name], options.peers, Path(folder)))
                print(f"# {name}: {results[name][-1]}", file=sys.stderr, flush=True)

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in results[name])

    lines = [
        f"`python bench/handshakes.py -n {options.peers} -r {options.rounds}`, medians. {machine()}. "
        "The generator runs on the same two cores; the initiations are created in advance.",
        "",
        "| | " + " | ".join(options.names) + " |",
        "|---" * (len(options.names) + 1) + "|",
        "| handshakes answered per second | " + " | ".join(f"{median(n, 'rate'):.0f}" for n in options.names) + " |",
        "| CPU microseconds per handshake | " + " | ".join(f"{median(n, 'cpu_us'):.0f}" for n in options.names) + " |",
        "| share answered | " + " | ".join(f"{median(n, 'answered'):.1%}" for n in options.names) + " |",
    ]
    print("\n".join(lines))
    if not options.no_write:
        write_section("Handshakes", lines)


if __name__ == "__main__":
    main()
