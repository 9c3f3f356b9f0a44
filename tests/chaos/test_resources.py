"""Lack of resources: ports, descriptors, memory and processor time."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.scene import Record, Scene, count, hold
from tests.netns.host import resident_kib, until
from tests.netns.lab import Lab
from tests.netns.raw_peer import RawPeer

pytestmark = pytest.mark.network


def test_port_taken(lab: Lab, engine: str, record: Record) -> None:
    """While up, a change to a port in use is refused, and the tunnel continues. If the port is taken while down, the
    interface stays down until it gets another port."""
    scene = Scene.set(lab, engine)
    with scene.stream() as stream:
        with scene.a.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.bind(("::", 40000))
            result = scene.a.try_run("wg", "set", scene.one.name, "listen-port", "40000")
            assert result.returncode != 0 and "Address already in use" in result.stderr
            stream.flow()
            assert scene.one.show("listen-port") == "51820"
        scene.one.down()
        with scene.a.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            until(lambda: _bound(other, 51820), "the port is free")
            scene.a.ip("link", "set", scene.one.name, "up")
            until(lambda: "Interface stays down" in scene.one.log.read_text(), "the reason is in the log")
            free = time.monotonic()
            scene.one.set("listen-port", "51900")
            recovery = stream.recovery(free)
    assert recovery < 0.5
    record(
        "port taken",
        "a change to this port is refused (EADDRINUSE) and nothing changes; when the interface comes up, the error is"
        " logged, and the next `wg set NAME listen-port` brings it up",
        lost=f"{stream.lost_text}: while it was down",
        recovery=[recovery],
    )


def _bound(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind(("", port))
    except OSError:
        return False
    return True


def test_no_descriptors(lab: Lab, engine: str, record: Record) -> None:
    """If the daemon cannot open a descriptor, it refuses its clients, but still forwards packets."""
    scene = Scene.set(lab, engine)
    pid = scene.one.process.pid
    with scene.stream() as stream, ExitStack() as clients:
        former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), former[1]))
        for _ in range(20):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(scene.one.socket))
            assert client.recv(64).startswith(b"errno=")
        stream.flow(100)
        used = _cpu_seconds(pid)
        stream.flow(100)
        assert _cpu_seconds(pid) - used < 0.4, "the daemon spins"
        lifted = time.monotonic()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
        assert scene.one.show("listen-port") == "51820"
        recovery = time.monotonic() - lifted
        stream.flow()
    assert stream.lost == 0
    record(
        "no descriptor left",
        "UAPI clients are refused with an errno until one is free; packets pass (recovery: until `wg show` answers)",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def test_no_descriptor_for_a_socket(lab: Lab, engine: str, record: Record) -> None:
    """Without descriptors for its sockets, the interface stays down and logs the cause, until the next command."""
    scene = Scene.set(lab, engine)
    pid = scene.one.process.pid
    with scene.stream() as stream:
        scene.one.down()
        until(lambda: not scene.a.run("ss", "-Huln", "sport = :51820"), "the socket is closed")
        former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, former[1]))
        scene.a.ip("link", "set", scene.one.name, "up")
        until(lambda: "Interface stays down" in scene.one.log.read_text(), "the reason is in the log")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
        lifted = time.monotonic()
        scene.one.down()
        scene.a.ip("link", "set", scene.one.name, "up")
        recovery = stream.recovery(lifted)
    record(
        "no descriptor for the sockets at interface up",
        "it stays down and the reason is logged; down and up again brings it up",
        lost=f"{stream.lost_text}: while it was down",
        recovery=[recovery],
    )


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_cap_with_a_flood(lab: Lab, engine: str, record: Record) -> None:
    """Garbage, forged handshakes and packets that cannot leave: the address space may grow by at most 24 MiB (M50)."""
    scene = Scene.set(lab, engine)
    pid = scene.one.process.pid
    stranger = RawPeer(scene.b, ("192.0.2.2", 40000), scene.one.key.public, ("192.0.2.1", 51820))
    with stranger, scene.stream() as stream:
        resident = resident_kib(pid)
        cap = _address_space(pid) + (24 << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (cap, cap))
        for _ in range(count(60, 3)):
            for _ in range(500):
                message, _ = stranger.initiation()
                stranger.send(message, message[:-1], os.urandom(148), b"\4\0\0\0" + os.urandom(1400))
        calm = time.monotonic()
        recovery = stream.recovery(calm)
        stream.flow()
        grown = resident_kib(pid) - resident
    assert grown < 16 << 10
    assert recovery < 0.5
    record(
        "memory cap (24 MiB more) with a flood",
        f"the daemon grew by {grown} KiB",
        lost=stream.lost_text,
        recovery=[recovery],
    )


def _address_space(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def test_process_stopped(lab: Lab, engine: str, record: Record) -> None:
    """The process, but not the machine, is stopped for longer than a session lives; then all timers are due."""
    seconds = count(200, 4)
    scene = Scene.set(lab, engine, timings="real" if seconds == 200 else "short")
    with scene.stream(interval=0.02) as stream:
        scene.one.process.send_signal(signal.SIGSTOP)
        hold(seconds)
        scene.one.process.send_signal(signal.SIGCONT)
        recovery = stream.recovery(time.monotonic())
        stream.flow()
    assert recovery < 1.5
    record(
        f"SIGSTOP for {seconds} s" + ("" if seconds == 200 else " (a session lives 3 s)"),
        "the session has ended; the first packet requests another",
        lost=f"{stream.lost_text}: those sent during the fault",
        recovery=[recovery],
    )
