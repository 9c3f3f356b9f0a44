"""Floods of handshake messages. bench/flood.py measures the remaining goodput, which depends on the machine."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.chaos.blast import blasting, frame, mac_of
from tests.chaos.scene import FULL, STRANGER, Record, count, hold, with_stranger
from tests.netns.host import resident_kib, until
from tests.netns.lab import Lab
from tests.netns.node import Key
from tests.netns.raw_peer import RawPeer
from tests.netns.traffic import Capture
from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.primitives import mac

pytestmark = pytest.mark.network

RATE = 10_000
SOURCES = 16_384
RETRY = 5.1


def false_initiation(public: str) -> bytes:
    """Return a random initiation with a valid mac1."""
    body = b"\1\0\0\0" + os.urandom(112)
    return body + mac(mac1_key(PublicKey(base64.b64decode(public))), body) + bytes(16)


def connect_under_load(peer: RawPeer) -> int:
    """Connect with at most two initiations, Rekey-Timeout (5 s) apart; return the number of initiations."""
    cookie = None
    for tried in (1, 2):
        message, sent = peer.initiation(cookie=cookie)
        peer.send(message)
        for answer in peer.waiting(wait=RETRY):
            if answer[0] == 2:
                peer.finish(sent, answer)
                return tried
            cookie = peer.read_cookie(answer, message)
            hold(RETRY)
    raise AssertionError("no session after two initiations")


@pytest.mark.parametrize("sources", [1, SOURCES] if FULL else [SOURCES])
def test_honest_peers_get_through_a_flood(lab: Lab, engine: str, record: Record, tmp_path: Path, sources: int) -> None:
    """The flood has a valid mac1 and comes from one address, or from a new one for each message."""
    scene, stranger = with_stranger(lab, engine)
    pid, public = scene.two.process.pid, scene.two.key.public
    scene.b.ip("route", "add", "10.128.0.0/9", "via", STRANGER[0])
    macs = (mac_of(scene.b, "eth0"), mac_of(stranger, "eth0"))
    frames = [
        frame(macs, (f"10.{128 + (n >> 14)}.{n >> 6 & 255}.{1 + (n & 63)}", 7777), ("192.0.2.2", 51821), it)
        for n, it in ((number % sources, false_initiation(public)) for number in range(SOURCES))
    ]
    keys = [Key.generate() for _ in range(count(20, 2))]
    for number, key in enumerate(keys):
        scene.two.set("peer", key.public, "allowed-ips", f"10.90.0.{number}/32")
        scene.a.address("eth0", f"192.0.2.{100 + number}/24")
    memory = resident_kib(pid)
    with (
        Capture(stranger, "eth0") as wire,
        blasting(stranger, "eth0", frames, tmp_path / "frames", rate=RATE, seconds=300),
        scene.stream() as stream,
    ):
        before = stranger.packets_sent("eth0")
        until(lambda: stranger.packets_sent("eth0") > before + 3 * RATE, "the flood has started")
        tries = []
        for number, key in enumerate(keys):
            with RawPeer(scene.a, (f"192.0.2.{100 + number}", 7), public, ("192.0.2.2", 51821), key) as peer:
                tries.append(connect_under_load(peer))
        answered = [it for it in wire.datagrams if not it.outgoing and it.destination.startswith("10.")]
        sent_by_flood = stranger.packets_sent("eth0") - before
        stream.flow()
    assert {it.kind for it in answered} <= {3}, "an answer was not a cookie reply"
    assert len(answered) < sent_by_flood / 2
    assert resident_kib(pid) - memory < 16 << 10
    record(
        f"handshake flood of {RATE:,}/s from {sources:,} {'sources' if sources > 1 else 'source'}",
        f"{len(keys)} new peers connected, {tries.count(1)} with their first initiation and {tries.count(2)} with"
        f" their second; {len(answered)} cookie replies for {sent_by_flood:,} false initiations",
        times=len(keys),
        lost=stream.lost_text,
    )
