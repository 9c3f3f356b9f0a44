"""Write the results of `make chaos` into the section "Faults" of docs/reliability.md.

usage: python -m tests.chaos.report RESULTS
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"


def main() -> None:
    results = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    write_section("Faults", table(results))


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return one row per fault, in the order of the first run, with columns for each engine."""
    engines = sorted({result["engine"] for result in results}, reverse=True)
    faults = list(dict.fromkeys(stem(result["fault"]) for result in results))
    lines = [
        f"`make chaos` (as root, after `make test-deps`). {machine()}. Recovery is measured from the end of the fault"
        " to the first echo of a stream that sends every 1 to 20 ms; where a fault was repeated, the median and the"
        " longest time are given. Lost packets are those that never came back; packets that the sender's own kernel"
        " refused are counted separately.",
        "",
        "| fault | times | effect | " + " | ".join(f"lost, {it} | recovery, {it}" for it in engines) + " |",
        "|---" * (3 + 2 * len(engines)) + "|",
    ]
    for fault in faults:
        by_engine = {result["engine"]: result for result in results if stem(result["fault"]) == fault}
        first = next(iter(by_engine.values()))
        cells = [cell for engine in engines for cell in cells_of(by_engine.get(engine))]
        lines.append(f"| {first['fault']} | {first['times']} | {first['happens']} | {' | '.join(cells)} |")
    return lines


def stem(fault: str) -> str:
    """Return the name of the fault without figures that differ from run to run."""
    return fault.partition(",")[0] if fault.startswith("replay") else fault


def cells_of(result: dict[str, Any] | None) -> tuple[str, str]:
    if result is None:
        return "-", "-"
    recovery = [seconds * 1000 for seconds in result["recovery"]]
    if not recovery:
        return result["lost"], "-"
    middle, longest = statistics.median(recovery), max(recovery)
    return result["lost"], f"{middle:.0f} ms" + (f", {longest:.0f}" if len(recovery) > 1 else "")


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()},"
        f" commit {commit}"
    )


def write_section(title: str, lines: list[str]) -> None:
    """Replace the section with this title by the lines, or append it."""
    text = DOCUMENT.read_text() if DOCUMENT.exists() else "# Reliability\n"
    head, marker, rest = text.partition(f"\n## {title}\n")
    tail = rest[rest.index("\n## ") :] if marker and "\n## " in rest else ""
    DOCUMENT.write_text(f"{head.rstrip()}\n\n## {title}\n\n" + "\n".join(lines).rstrip() + "\n" + tail)


if __name__ == "__main__":
    main()
