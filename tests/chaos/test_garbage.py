"""Datagrams of unknown senders: garbage, and replays of genuine datagrams."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import pytest

from tests.chaos.blast import blast, frame, mac_of
from tests.chaos.scene import STRANGER, Record, count, with_stranger
from tests.netns.host import Host, resident_kib, until
from tests.netns.lab import Lab
from tests.netns.node import Node
from tests.netns.traffic import Capture

pytestmark = pytest.mark.network


def drain(node: Node, host: Host) -> None:
    """Wait until the daemon has read everything from its sockets."""
    idle = r"UNCONN 0 "
    until(lambda: idle in " ".join(host.run("ss", "-Huln", f"sport = :{node.port}").split()), "the sockets are empty")


def test_garbage_of_all_lengths(lab: Lab, engine: str, record: Record, tmp_path: Path) -> None:
    """Nothing is answered, memory does not grow, and the tunnel still works (M50)."""
    scene, stranger = with_stranger(lab, engine)
    total = count(1_000_000, 30_000)
    macs = (mac_of(scene.b, "eth0"), mac_of(stranger, "eth0"))
    dice = random.Random(5)
    frames = [
        frame(macs, STRANGER, ("192.0.2.2", 51821), garbage(dice, size)) for size in [*range(1473), 148, 92, 64, 32] * 4
    ]
    pid = scene.two.process.pid
    with scene.stream() as stream, Capture(stranger, "eth0") as wire:
        memory, sent = resident_kib(pid), 0
        while sent < total:
            sent += blast(stranger, "eth0", frames, tmp_path / "frames", rate=20_000, seconds=count(10, 1))
            wire.forget()
            assert not [it for it in wire.datagrams if not it.outgoing and it.destination == STRANGER[0]]
        long_ones(stranger, dice)
        calm = time.monotonic()
        recovery = stream.recovery(calm)
        drain(scene.two, scene.b)
        grown = resident_kib(pid) - memory
        assert not [it for it in wire.datagrams if not it.outgoing and it.destination == STRANGER[0]]
    assert recovery < 0.5
    assert grown < 16 << 10
    record(
        f"{total:,} garbage datagrams of all lengths at 20,000/s",
        f"dropped with a reason, not answered; {grown} KiB more memory",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def garbage(dice: random.Random, size: int) -> bytes:
    """Return random bytes; every other datagram begins with a known message type."""
    start = bytes((dice.randrange(6), 0, 0, 0)) if dice.random() < 0.5 else b""
    return (start + dice.randbytes(size))[:size]


def long_ones(stranger: Host, dice: random.Random) -> None:
    """Send long datagrams, up to the maximum, as fragments."""
    with stranger.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(STRANGER)
        for size in [*dice.sample(range(1473, 65507), 200), 65507]:
            sender.sendto(garbage(dice, size), ("192.0.2.2", 51821))


def test_replay_storm(lab: Lab, engine: str, record: Record, tmp_path: Path) -> None:
    """Every datagram of one end is replayed, from its own address and from another one."""
    scene, stranger = with_stranger(lab, engine)
    rounds = count(200, 10)
    with Capture(scene.b, "eth0") as capture, scene.stream(interval=0.002) as stream:
        scene.a.ping(scene.two.addresses[0], count=20, size=1200)
        stream.flow(100)
        genuine = [it.payload for it in capture.datagrams if not it.outgoing and len(it.payload) <= 1472]
        macs = (mac_of(scene.b, "eth0"), mac_of(stranger, "eth0"))
        frames = [
            frame(macs, source, ("192.0.2.2", 51821), payload)
            for payload in genuine
            for source in (("192.0.2.1", 51820), STRANGER)
        ]
        memory = resident_kib(scene.two.process.pid)
        with Capture(stranger, "eth0") as wire:
            sent = blast(
                stranger, "eth0", frames, tmp_path / "frames", rate=20_000, seconds=len(frames) * rounds / 20_000
            )
            assert not [it for it in wire.datagrams if not it.outgoing and it.destination == STRANGER[0]]
        calm = time.monotonic()
        recovery = stream.recovery(calm)
        grown = resident_kib(scene.two.process.pid) - memory
        assert scene.two.show_of(scene.one.key.public, "endpoints") == ["192.0.2.1:51820"]
    assert stream.duplicates == 0
    assert recovery < 0.5
    assert grown < 16 << 10
    record(
        f"replay storm, {sent:,} datagrams at 20,000/s",
        "no datagram is delivered or answered, or moves the endpoint",
        lost=stream.lost_text,
        recovery=[recovery],
    )
