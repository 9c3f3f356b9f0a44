"""Many configured peers: the time of one `set`, the memory per peer; and the time of a start.

usage: python bench/configured_peers.py [-n PEERS] [-r ROUNDS] [--no-write] [NAME ...]     (root)
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rig import IMPLEMENTATIONS, ends, machine, sh, write_section


def set_text(count: int) -> bytes:
    peers = (
        f"public_key={os.urandom(32).hex()}\nendpoint=10.99.0.2:{1024 + number % 60000}\nreplace_allowed_ips=true\n"
        f"allowed_ip=10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32\n"
        for number in range(count)
    )
    return ("set=1\n" + "".join(peers) + "\n").encode()


def ask(name: str, operation: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(120)
        sock.connect(f"/var/run/wireguard/{name}.sock")
        sock.sendall(operation)
        reply = b""
        while not reply.endswith(b"\n\n"):
            reply += sock.recv(1 << 20)
        return reply


MORE = 21
"""The number of peers added one by one. Their median hides cold caches and garbage collections."""


def one(command: str, count: int) -> dict[str, float]:
    text = set_text(count)
    with ends() as (a, _):
        a.start(command)
        before = a.resident_mb()
        start = time.perf_counter()
        assert ask(a.name, text).endswith(b"errno=0\n\n")
        seconds = time.perf_counter() - start
        grown = a.resident_mb() - before
        more = statistics.median(one_more(a.name, number) for number in range(MORE))
    return {"seconds": seconds, "kib": grown * 1024 / count, "more_ms": more * 1e3}


def one_more(name: str, number: int) -> float:
    text = f"set=1\npublic_key={os.urandom(32).hex()}\nallowed_ip=10.255.255.{number}/32\n\n".encode()
    start = time.perf_counter()
    assert ask(name, text) == b"errno=0\n\n"
    return time.perf_counter() - start


def start_ms(command: str) -> float:
    """Return the milliseconds from exec until the command has returned and the daemon in the background is ready."""
    with ends() as (a, _):
        words = ["ip", "netns", "exec", a.namespace, *command.replace(" -f ", " ").format(name=a.name).split()]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        start = time.perf_counter()
        subprocess.run(words, check=True, env=environment, capture_output=True)
        taken = time.perf_counter() - start
        assert Path(f"/var/run/wireguard/{a.name}.sock").is_socket()
        sh("ip", "-n", a.namespace, "link", "del", a.name)
    return taken * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--peers", type=int, default=10_000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("names", nargs="*", default=["wyrmhole", "wireguard-go"])
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.names}
    for _ in range(options.rounds):
        for name in options.names:
            results[name].append(one(IMPLEMENTATIONS[name], options.peers))
            print(f"# {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    starts = [start_ms(IMPLEMENTATIONS["wyrmhole"]) for _ in range(10)]

    def row(label: str, key: str, form: str) -> str:
        medians = (statistics.median(run[key] for run in results[name]) for name in options.names)
        return f"| {label} | " + " | ".join(format(value, form) for value in medians) + " |"

    lines = [
        f"`python bench/configured_peers.py -n {options.peers} -r {options.rounds}`, medians. {machine()}.",
        "",
        "| | " + " | ".join(options.names) + " |",
        "|---" * (len(options.names) + 1) + "|",
        row(f"{options.peers} peers in one `set`, seconds", "seconds", ".2f"),
        row("memory per peer, KiB", "kib", ".1f"),
        row(f"one more peer, milliseconds, median of {MORE}", "more_ms", ".2f"),
        "",
        "From exec to ready in the background (with `ip netns exec`, 10 starts): "
        f"median {statistics.median(starts):.0f} ms, maximum {max(starts):.0f} ms.",
    ]
    print("\n".join(lines))
    if not options.no_write:
        write_section("Configured peers and start-up", lines)


if __name__ == "__main__":
    main()
