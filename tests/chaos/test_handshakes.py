"""Handshakes under strain: simultaneous ones, and many in a row while data flows."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from tests.chaos.scene import Record, Scene, count
from tests.netns.host import until
from tests.netns.lab import Lab
from tests.netns.traffic import Capture

pytestmark = pytest.mark.network


def test_simultaneous_initiation(lab: Lab, engine: str, record: Record) -> None:
    """Both ends send a packet to the other simultaneously, and both packets arrive (L5)."""
    scene, wanted, recovery = Scene.set(lab, engine), count(200, 10), []
    crossed = times = 0
    near, far = End.open(scene)
    with near, far, Capture(scene.b, "eth0") as wire:
        # On a busy machine, one side may be late, so the handshakes do not cross; try again.
        while times < wanted or (crossed < wanted // 2 and times < 5 * wanted):
            number, times = times, times + 1
            for node in (scene.one, scene.two):
                node.down()
            for node in (scene.one, scene.two):
                # The daemon would drop packets that are sent before it has noticed the change.
                until(lambda node=node: not node.has_socket(), "the socket is closed")  # type: ignore[misc]
            for node in (scene.one, scene.two):
                node.up()
            list(wire.datagrams)
            wire.forget()
            begun = time.monotonic()
            near.send(number)
            far.send(number)
            until(lambda: near.last_received() == far.last_received() == number, "both packets arrive")  # noqa: B023
            recovery.append(time.monotonic() - begun)
            crossed += {it.outgoing for it in wire.of(1)} == {True, False}
    assert crossed >= wanted // 2, f"only {crossed} of {times} crossed"
    assert max(recovery) < 5.4 + 0.5
    record(
        "simultaneous initiation",
        f"{crossed} of {times} crossed; both handshakes complete, both packets arrive",
        times=times,
        lost="0",
        recovery=recovery,
    )


class End:
    """One end's socket: it sends numbers to the other end and remembers the last one that it received."""

    def __init__(self, sock: socket.socket, target: tuple[str, int]) -> None:
        self._socket = sock
        self._target = target
        self._received = -1

    @classmethod
    def open(cls, scene: Scene) -> tuple[End, End]:
        sockets = []
        for host in (scene.a, scene.b):
            with host.entered():
                sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            sockets[-1].bind(("", 7000))
        near, far = sockets
        return cls(near, (scene.two.addresses[0], 7000)), cls(far, (scene.one.addresses[0], 7000))

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, number: int) -> None:
        self._socket.sendto(number.to_bytes(4), self._target)

    def last_received(self) -> int:
        try:
            while True:
                self._received = int.from_bytes(self._socket.recv(64))
        except BlockingIOError:
            return self._received


def test_rekey_under_load(lab: Lab, engine: str, record: Record) -> None:
    """With a new session every 80 ms and data in both directions, no packet is lost or reordered (L4, M36)."""
    scene, wanted = Scene.set(lab, engine, timings="hasty"), count(1000, 30)
    # If a thread moves to another core while its packets are queued on the old one, the kernel reorders packets.
    for core, node in enumerate((scene.one, scene.two)):
        pin(node.process.pid, core)
    with Capture(scene.b, "eth0", data=False) as wire, scene.stream(interval=0.001, size=200) as stream:
        begun = time.monotonic()
        until(lambda: len(wire.of(2)) >= wanted, "sessions are renewed", patience=wanted)
        seconds = time.monotonic() - begun
    assert (stream.lost, stream.duplicates, stream.reordered) == (0, 0, 0)
    record(
        "rekey under load",
        f"{wanted} sessions in {seconds:.0f} s, with 1,000 packets/s each way",
        times=wanted,
        lost=f"{stream.lost_text}, none reordered",
    )


def pin(pid: int, core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cores[core % len(cores)]})
