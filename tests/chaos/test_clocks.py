"""Clocks that jump.

A time namespace can only set the boottime of a process at its start. Jumps at run time therefore come from the test's
own clock (`daemon.py`), which both engines query because it is not the system's.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.daemon import SKEW
from tests.chaos.scene import BACK, ENDPOINT, Record, Scene, count, implementation
from tests.netns.implementations import COMMANDS
from tests.netns.lab import Lab
from tests.netns.node import Node

pytestmark = pytest.mark.network

SECOND = 10**9
YEAR = 365 * 86400


def write_skew(file: Path, *, boottime: int = 0, wall: int = 0) -> None:
    """Write the offsets, in seconds, in place, because the daemon has mapped the file."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(SKEW.pack(boottime * SECOND, wall * SECOND))


def test_wall_clock_back_a_year(lab: Lab, engine: str, record: Record, tmp_path: Path) -> None:
    """Timestamps of initiations still increase, so each later handshake is accepted."""
    skew = tmp_path / "skew"
    write_skew(skew)
    scene, times, recovery = Scene.set(lab, engine, skew=skew), count(20, 3), []
    with scene.stream() as stream:
        for number in range(1, times + 1):
            write_skew(skew, wall=-YEAR * number)
            stream.flow()
            # Force a new session: this end's initiation has a timestamp of the skewed clock.
            scene.one.down()
            up = time.monotonic()
            scene.a.ip("link", "set", scene.one.name, "up")
            recovery.append(stream.recovery(up))
    assert max(recovery) < 1.5
    record(
        "wall clock back a year",
        "sessions are unaffected; timestamps continue from the last one (recovery: of a handshake forced afterwards)",
        times=times,
        lost=f"{stream.lost_text}: while the interface was down",
        recovery=recovery,
    )


def test_restart_with_the_wall_clock_back_a_year(lab: Lab, engine: str, record: Record, tmp_path: Path) -> None:
    """The daemon has forgotten its last timestamp, so its initiations are refused until its peer initiates."""
    skew = tmp_path / "skew"
    write_skew(skew)
    scene = Scene.set(lab, engine, timings="short", skew=skew)
    scene.one.process.kill()
    scene.one.process.wait()
    write_skew(skew, wall=-YEAR)
    scene.one.restart()
    started = time.monotonic()
    with scene.stream(interval=0.02) as stream:
        recovery = stream.recovery(started)
    record(
        "restart with the wall clock a year back",
        "its initiations are older than the peer's last one and are refused; the peer initiates after 15 s without an"
        " answer (here 0.7 s), which creates the session",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def test_boottime_jump(lab: Lab, engine: str, record: Record, tmp_path: Path) -> None:
    """After a suspension of ten minutes, the session has expired, and the next packet requests another."""
    skew = tmp_path / "skew"
    write_skew(skew)
    scene, times, recovery = Scene.set(lab, engine, skew=skew), count(50, 5), []
    with scene.stream() as stream:
        for number in range(1, times + 1):
            stream.flow()
            before = scene.one.log.read_text().count("keypair created")
            scene.one.process.send_signal(signal.SIGSTOP)
            write_skew(skew, boottime=600 * number)
            scene.one.process.send_signal(signal.SIGCONT)
            woken = time.monotonic()
            scene.one.process.send_signal(signal.SIGUSR1)
            recovery.append(stream.recovery(woken))
            assert scene.one.log.read_text().count("keypair created") > before
    assert max(recovery) < 1.5
    record(
        "boottime jump of 600 s (suspend)",
        "the session ends immediately; the first packet is staged and requests another",
        times=times,
        lost=stream.lost_text,
        recovery=recovery,
    )


@pytest.mark.parametrize("years", [-1, 100], ids=["just-booted", "100-years"])
def test_boottime_after_boot_and_after_100_years(lab: Lab, engine: str, record: Record, years: int) -> None:
    """A machine that has just booted, and one that has run for 100 years, for both the engine and the loop."""
    up = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    offset = 1 - up if years < 0 else years * YEAR
    name = f"{implementation(engine)}-{years}"
    inner = COMMANDS[implementation(engine)]
    COMMANDS[name] = ("unshare", "--time", "--boottime", str(offset), "--fork", "--kill-child", *inner)
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, name, b, implementation(engine), endpoint=ENDPOINT, back=BACK)
    scene = Scene(a, b, one, two)
    started = time.monotonic()
    with scene.stream() as stream:
        recovery = stream.recovery(started)
        stream.flow()
    _end_child(one)
    assert stream.lost == 0
    record(
        "just booted" if years < 0 else "up for 100 years",
        "no effect (time namespace)",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def _end_child(node: Node) -> None:
    """End the daemon by signalling the child, because unshare(1) ignores signals and exits with its child."""
    pid = node.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    node.process.wait(10)
