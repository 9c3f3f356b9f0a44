"""Faults of the interface: down, up and deleted."""

from __future__ import annotations

import time

import pytest

from tests.chaos.scene import Record, Scene, count
from tests.netns.host import resident_kib, until
from tests.netns.lab import Lab

pytestmark = pytest.mark.network


def test_interface_down_and_up(lab: Lab, engine: str, record: Record) -> None:
    """Each time, a new session starts, because an interface that goes down forgets all keys."""
    scene, times = Scene.set(lab, engine), count(100, 5)
    recovery = []
    with scene.stream() as stream:
        memory = resident_kib(scene.one.process.pid)
        for _ in range(times):
            # A second initiation within 20 ms would be refused, and the next attempt follows after 5 s.
            stream.flow()
            scene.one.down()
            up = time.monotonic()
            scene.a.ip("link", "set", scene.one.name, "up")
            recovery.append(stream.recovery(up))
    assert max(recovery) < 1.5
    assert resident_kib(scene.one.process.pid) - memory < 4096
    record(
        "TUN down and up",
        "down: the socket is closed, the keys are forgotten; up: a socket is opened, the next packet creates a session",
        times=times,
        lost=f"{stream.lost_text}: those sent during the fault",
        recovery=recovery,
    )


def test_interface_deleted(lab: Lab, engine: str, record: Record) -> None:
    """The daemon exits cleanly; after a restart, the first packet arrives."""
    scene, times = Scene.set(lab, engine), count(10, 1)
    recovery = []
    with scene.stream() as stream:
        for _ in range(times):
            scene.a.ip("link", "del", scene.one.name)
            assert scene.one.process.wait(10) == 0
            assert not scene.one.socket.exists()
            scene.one.restart()
            recovery.append(stream.recovery(time.monotonic()))
    until(lambda: "Interface is gone" in scene.one.log.read_text(), "the reason is in the log")
    record(
        "TUN deleted",
        "the daemon exits with status 0 and removes its socket file (recovery: from its next start)",
        times=times,
        lost=f"{stream.lost_text}: those sent during the fault",
        recovery=recovery,
    )
