"""A daemon that is killed and started again, under load."""

from __future__ import annotations

import time

import pytest

from tests.chaos.nonces import NonceWatch
from tests.chaos.scene import Record, Scene, count
from tests.netns.lab import Lab

pytestmark = pytest.mark.network


def test_killed_and_restarted_under_load(lab: Lab, engine: str, record: Record) -> None:
    """No counter is used twice under one key, whatever was in flight (I1, L2)."""
    scene, times, recovery = Scene.set(lab, engine), count(100, 5), []
    with NonceWatch(scene.b, "eth0") as watch, scene.stream(interval=0.001, size=1200) as stream:
        for _ in range(times):
            stream.flow(50)
            scene.one.process.kill()
            scene.one.process.wait()
            scene.one.restart()
            recovery.append(stream.recovery(time.monotonic()))
    assert watch.missed == 0
    assert watch.sessions >= 2 * times
    assert watch.repeated == []
    assert max(recovery) < 1.5
    record(
        "kill -9 and restart under load",
        f"{sum(watch.seen.values()):,} data messages under {watch.sessions} keys on the wire, no counter used"
        " twice (recovery: from the daemon's start)",
        times=times,
        lost=f"{stream.lost_text}: while there was no interface",
        recovery=recovery,
    )


def test_peer_killed_and_restarted(lab: Lab, engine: str, record: Record) -> None:
    """The other end lost the session, and only this end sends: after 15 s without an answer (here 0.7 s), it starts a
    new handshake. If the peer had data to send, the session would be back at once (L2, M34)."""
    scene, times, recovery = Scene.set(lab, engine, timings="short"), count(20, 2), []
    with scene.stream(interval=0.002) as stream:
        for _ in range(times):
            stream.flow(50)
            scene.two.process.kill()
            scene.two.process.wait()
            scene.two.restart()
            recovery.append(stream.recovery(time.monotonic()))
    assert max(recovery) < 3.5
    record(
        "kill -9 of the peer (times divided by 20)",
        "data is unanswered for Keepalive-Timeout + Rekey-Timeout, then a handshake follows",
        times=times,
        lost=f"{stream.lost_text}: until then",
        recovery=recovery,
    )
