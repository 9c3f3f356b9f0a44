"""The native engine's threads: they leave replaced edges alone, and they always end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.netns.host import until
from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import make_engine
from tests.support.packets import ipv4
from tests.support.sides import A_INNER, B_INNER, B_OUTER
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.datagram import Received


class HeldTun(ListTun):
    """A TUN that blocks its reader until `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def read_into(self, buffer: bytearray | memoryview) -> int:
        self.entered.set()
        assert self.release.wait(10)
        return super().read_into(buffer)


class WatchedBind(ListBind):
    """A bind that records the descriptors that it is asked to read."""

    def __init__(self) -> None:
        super().__init__(lambda *datagram: None)
        self.polled: set[int] = set()

    def receive(self, fileno: int) -> Received | None:
        self.polled.add(fileno)
        return super().receive(fileno)


def rung() -> set[str]:
    """Return the process's eventfds whose counter is not zero."""
    found = set()
    for path in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = path.read_text().split("\n")
        except FileNotFoundError:
            continue
        found |= {path.name for line in lines if line.startswith("eventfd-count:") and int(line.split()[1], 16)}
    return found


def test_a_replaced_bind_is_not_used_again() -> None:
    """Its caller closes it, and another file may then get the descriptor's number."""
    tun, former, latter = HeldTun(), WatchedBind(), WatchedBind()
    engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    try:
        engine.attach_tun(tun)
        engine.attach_bind(former, 1)
        tun.inject(PLAIN + ipv4(A_INNER, B_INNER))
        assert tun.entered.wait(10)
        before = rung()
        replacing = threading.Thread(target=engine.attach_bind, args=(latter, 1))
        replacing.start()
        until(lambda: rung() - before, "the blocked worker is notified")
        former.arrive(b"late", B_OUTER.sockaddr)
        tun.release.set()
        replacing.join(10)
        assert not replacing.is_alive()
    finally:
        tun.release.set()
        engine.close()
    assert former.polled <= set(former.filenos())
    assert latter.polled <= set(latter.filenos())


NO_THREADS = """
import os, resource
from tests.support.engine_plane import ListTun
from wyrmhole.engine.native import NativeEngine
if os.getuid() == 0:
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
engine = NativeEngine(lambda: 0)
try:
    engine.attach_tun(ListTun())
except OSError as error:
    print("refused")
engine.close()
print("closed")
"""


def test_an_engine_whose_thread_cannot_start_raises_and_closes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS], stdout=subprocess.PIPE, timeout=20, text=True, check=False, cwd=os.getcwd()
    )
    assert done.stdout.split() == ["refused", "closed"]


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_a_collected_engine_releases_threads_and_descriptors() -> None:
    tun, bind = ListTun(), WatchedBind()
    before, former = threads(), len(os.listdir("/proc/self/fd"))
    engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    engine.attach_tun(tun)
    engine.attach_bind(bind, 1)
    assert threads() > before
    del engine
    gc.collect()
    until(lambda: threads() <= before, "the worker ends")
    until(lambda: len(os.listdir("/proc/self/fd")) <= former, "its descriptors are closed")
