"""Shared by the scenarios: two tunnel ends on one engine, the scale of a scenario, and its result.

`make chaos` runs everything in full. Without WYRMHOLE_CHAOS=full, each scenario is scaled down, with the same
assertions.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.stream import Stream
from tests.netns.host import Host, until
from tests.netns.implementations import COMMANDS, WYRMHOLED
from tests.netns.lab import Lab
from tests.netns.node import Node
from wyrmhole.engine.select import EngineUnavailable, select_engine

FULL = os.environ.get("WYRMHOLE_CHAOS") == "full"
REPORT = os.environ.get("WYRMHOLE_CHAOS_REPORT")
ENDPOINT, BACK = "192.0.2.2:51821", "192.0.2.1:51820"
DAEMON = Path(__file__).with_name("daemon.py")


def available_engines() -> list[str]:
    found = []
    for kind in ("portable", "native"):
        try:
            engine, _ = select_engine(kind, clock=lambda: 0)
        except EngineUnavailable:
            continue
        engine.close()
        found.append(kind)
    return found


ENGINES = available_engines()


def count(full: int, short: int) -> int:
    """Return `full` under `make chaos`, and otherwise `short`, which suffices to test the scenario."""
    return full if FULL else short


def implementation(engine: str, timings: str = "real", skew: Path | None = None) -> str:
    """Register a command for wyrmholed with that engine, and return the name by which a lab starts it."""
    name = f"wyrmhole-{engine}"
    if timings == "real" and skew is None:
        COMMANDS[name] = (str(WYRMHOLED), "-f", "--engine", engine)
        return name
    name += f"-{timings}" if skew is None else f"-{timings}-{skew.name}"
    file = "-" if skew is None else str(skew)
    COMMANDS[name] = (sys.executable, str(DAEMON), timings, file, "-f", "--engine", engine)
    return name


@dataclass
class Scene:
    """Two neighbours with a tunnel; each knows the other's endpoint, so either can initiate."""

    a: Host
    b: Host
    one: Node
    two: Node

    @classmethod
    def set(cls, lab: Lab, engine: str, *, timings: str = "real", skew: Path | None = None) -> Scene:
        a, b = lab.neighbours()
        name, skewed = implementation(engine, timings), implementation(engine, timings, skew)
        one, two = lab.tunnel(a, skewed, b, name, endpoint=ENDPOINT, back=BACK)
        a.ping(two.addresses[0], count=1)
        return cls(a, b, one, two)

    def stream(self, interval: float = 0.005, size: int = 64) -> Stream:
        """Return a stream through the tunnel, sent by the first end."""
        return Stream(self.a, self.b, self.two.addresses[0], interval=interval, size=size)


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table: the number of faults, the lost packets, and the recovery times in seconds."""

    fault: str
    engine: str
    happens: str
    times: int
    lost: str
    recovery: tuple[float, ...]


Record = Callable[..., None]


def recorder(engine: str) -> Record:
    """Return a function that records a result, which `make chaos` writes into the document."""

    def record(fault: str, happens: str, *, lost: str, recovery: Sequence[float] = (), times: int = 1) -> None:
        result = Result(fault, engine, happens, times, lost, tuple(recovery))
        middle = f", back after {statistics.median(recovery):.3f} s" if recovery else ""
        print(f"{fault} ({engine}): {lost}{middle}")
        if REPORT is not None:
            with Path(REPORT).open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")

    return record


def hold(seconds: float) -> None:
    """Let a fault last for `seconds`. There is no condition to wait for in the meantime."""
    over = time.monotonic() + seconds
    until(lambda: time.monotonic() >= over, "the time passes", patience=seconds + 5)


STRANGER = ("192.0.2.3", 7777)


def with_stranger(lab: Lab, engine: str) -> tuple[Scene, Host]:
    a, b, stranger = lab.switched(3)
    name = implementation(engine)
    one, two = lab.tunnel(a, name, b, name, endpoint=ENDPOINT, back="192.0.2.1:51820")
    a.ping(two.addresses[0], count=1)
    return Scene(a, b, one, two), stranger
