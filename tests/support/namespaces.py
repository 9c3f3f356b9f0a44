"""Network namespaces for tests marked `network`: each is made by the test, named after its process, and removed."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Namespace:
    """One network namespace with its loopback up."""

    def __init__(self) -> None:
        self.name = f"wyrm-{os.getpid()}-{next(_numbers)}"
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        # Duplicate address detection would delay IPv6 by a second.
        self.sysctl("net.ipv6.conf.default.accept_dad", "0")

    def ip(self, *arguments: str) -> str:
        return ip("-n", self.name, *arguments)

    def sysctl(self, name: str, value: str) -> None:
        with self.entered():
            Path("/proc/thread-self/root/proc/sys", *name.split(".")).write_text(value)

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the namespace with this thread. Sockets made inside stay in it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)
            os.close(there)

    def join(self, other: Namespace, device: str, other_device: str) -> None:
        """Connect the two namespaces with a veth pair that is up and has no addresses."""
        self.ip("link", "add", device, "type", "veth", "peer", "name", other_device, "netns", other.name)
        self.ip("link", "set", device, "up")
        other.ip("link", "set", other_device, "up")

    def address(self, device: str, *addresses: str) -> None:
        for address in addresses:
            extra = ("nodad",) if ":" in address else ()
            self.ip("address", "add", address, "dev", device, *extra)


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    made: list[Namespace] = []
    try:
        for _ in range(count):
            made.append(Namespace())
        yield made
    finally:
        for namespace in made:
            namespace.delete()


def _setns(fileno: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fileno, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
