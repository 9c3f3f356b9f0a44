"""wyrmhole beside other user-space implementations: throughput, packets per second, latency, CPU and memory.

Every round runs each implementation once, so that drift of the machine does not affect ratios. The table has medians.

usage: python bench/peers.py [-r ROUNDS] [-t SECONDS] [--no-write] [NAME ...]     (root; after `make test-deps`)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rig import IMPLEMENTATIONS, End, machine, pair, write_section

Measured = dict[str, float]
ROWS = {
    "tcp_gbps": "TCP, 1 stream, Gb/s",
    "tcp4_gbps": "TCP, 4 streams, Gb/s",
    "tcp_cpu_s_per_gb": "both daemons' CPU seconds per GB",
    "udp1300_kpps": "UDP 1300 B, thousand packets/s",
    "udp64_kpps": "UDP 64 B, thousand packets/s",
    "ping_us": "ping, microseconds",
    "flood_us": "flood ping, microseconds",
    "rss_mb": "resident memory under load, MB",
}


def measure(a: End, b: End, seconds: int) -> Measured:
    def iperf(*arguments: str) -> tuple[dict[str, Any], float]:
        before = a.cpu_seconds() + b.cpu_seconds()
        out = a.exec("iperf3", "-c", b.inner, "-J", "-t", str(seconds), *arguments, check=False, seconds=seconds + 30)
        report = json.loads(out)
        if "error" in report:
            raise RuntimeError(report["error"])
        return report["end"], a.cpu_seconds() + b.cpu_seconds() - before

    def packets(size: int) -> float:
        total = iperf("-u", "-b", "0", "-l", str(size))[0]["sum"]
        return float(total["packets"] - total["lost_packets"]) / seconds / 1e3

    def average(out: str) -> float:
        return float(out.split("rtt", 1)[1].split("=", 1)[1].split("/")[1]) * 1e3

    single, cpu = iperf()
    several, _ = iperf("-P", "4")
    return {
        "tcp_gbps": single["sum_received"]["bits_per_second"] / 1e9,
        "tcp4_gbps": several["sum_received"]["bits_per_second"] / 1e9,
        "tcp_cpu_s_per_gb": cpu / (single["sum_received"]["bytes"] / 1e9),
        "udp1300_kpps": packets(1300),
        "udp64_kpps": packets(64),
        "ping_us": average(a.exec("ping", "-q", "-i", "0.002", "-c", "1000", b.inner)),
        "flood_us": average(a.exec("ping", "-q", "-f", "-c", "20000", b.inner)),
        "rss_mb": max(a.resident_mb(), b.resident_mb()),
    }


def table(results: dict[str, list[Measured]], format_: Callable[[float], str] = "{:.4g}".format) -> list[str]:
    names = list(results)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for key, label in ROWS.items():
        medians = [statistics.median(run[key] for run in results[name]) if results[name] else None for name in names]
        cells = ["-" if value is None else format_(value) for value in medians]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def ratios(results: dict[str, list[Measured]]) -> list[str]:
    """Return a table of the ratios of wyrmhole to each other implementation, from the medians of this run."""
    ours = results.get("wyrmhole") or []
    others = [name for name in results if name != "wyrmhole" and results[name]]
    if not ours or not others:
        return []
    lines = ["", "| wyrmhole over | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
    for key, label in ROWS.items():
        mine = statistics.median(run[key] for run in ours)
        cells = [f"{mine / statistics.median(run[key] for run in results[name]):.2f}x" for name in others]
        lines.append(f"| {label.rpartition(',')[0] or label} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--seconds", type=int, default=4)
    parser.add_argument("--no-write", action="store_true", help="print only; do not change docs/benchmarks.md")
    parser.add_argument("names", nargs="*", default=list(IMPLEMENTATIONS))
    options = parser.parse_args()
    results: dict[str, list[Measured]] = {name: [] for name in options.names}
    for number in range(options.rounds):
        for name in options.names:
            try:
                with pair(IMPLEMENTATIONS[name]) as (a, b):
                    measured = measure(a, b, options.seconds)
            except (RuntimeError, ValueError) as error:
                print(f"# round {number} {name}: {error}", file=sys.stderr)
                continue
            results[name].append(measured)
            figures = " ".join(f"{key}={value:.4g}" for key, value in measured.items())
            print(f"# round {number} {name}: {figures}", file=sys.stderr, flush=True)
    names = "" if options.names == list(IMPLEMENTATIONS) else " " + " ".join(options.names)
    command = f"make bench-peers BENCH_ARGS='-r {options.rounds} -t {options.seconds}{names}'"
    lines = [f"`{command}`, medians of {options.rounds} rounds. {machine()}.", "", *table(results), *ratios(results)]
    print("\n".join(lines))
    if not options.no_write:
        write_section("Side by side", lines)


if __name__ == "__main__":
    main()
