"""Find the process that holds a Unix socket (by path), a UDP port, or a TUN (by interface).

It reads /proc, where root sees all processes except those in other PID namespaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
DAEMON_MODULE = "wyrmhole.cli.wyrmholed"
"""The module that `up` runs as the daemon."""


class Process(NamedTuple):
    pid: int
    words: list[str]
    """Its command line."""

    def __str__(self) -> str:
        names = [os.path.basename(word) for word in self.words[:1]]
        if daemon := self.daemon_of:
            return f"the daemon of {daemon} (pid {self.pid})"
        return f"{names[0] if names else 'a process'} (pid {self.pid})"

    @property
    def daemon_of(self) -> str | None:
        """The interface, if this is a wyrmholed."""
        is_ours = any("wyrmholed" in word for word in self.words[:3])
        return self.words[-1] if is_ours and len(self.words) > 1 else None


def holder_of_unix_socket(path: str) -> Process | None:
    """Return the process that listens on a path."""
    inodes = set()
    for line in _lines(PROC / "net/unix"):
        words = line.split()
        # Flags with bit 16 (__SO_ACCEPTCON): it listens.
        if len(words) == 8 and os.path.realpath(words[7]) == os.path.realpath(path) and int(words[3], 16) & 0x10000:
            inodes.add(words[6])
    return _holder(inodes)


def holder_of_udp_port(port: int) -> Process | None:
    inodes = set()
    for name in ("net/udp", "net/udp6"):
        for line in _lines(PROC / name)[1:]:
            words = line.split()
            if len(words) > 9 and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(words[9])
    return _holder(inodes)


def holder_of_tun(interface: str) -> Process | None:
    def holds(pid: str) -> bool:
        for fd in _names(PROC / pid / "fd"):
            with suppress(OSError):
                is_tun = os.readlink(PROC / pid / "fd" / fd) == "/dev/net/tun"
                if is_tun and f"iff:\t{interface}\n" in (PROC / pid / "fdinfo" / fd).read_text():
                    return True
        return False

    return next(_processes(holds), None)


def tun_of(pid: int) -> str | None:
    """Return the interface of a process's TUN."""
    for fd in _names(PROC / str(pid) / "fdinfo"):
        for line in _lines(PROC / str(pid) / "fdinfo" / fd):
            if line.startswith("iff:\t"):
                return line[5:]
    return None


def _holder(inodes: set[str]) -> Process | None:
    links = {f"socket:[{inode}]" for inode in inodes - {"0"}}

    def holds(pid: str) -> bool:
        for fd in _names(PROC / pid / "fd"):
            with suppress(OSError):
                if os.readlink(PROC / pid / "fd" / fd) in links:
                    return True
        return False

    return next(_processes(holds), None) if links else None


def _processes(holds: Callable[[str], bool]) -> Iterator[Process]:
    for pid in filter(str.isdigit, _names(PROC)):
        if holds(pid):
            with suppress(OSError):
                words = (PROC / pid / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield Process(int(pid), [word for word in words if word])


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
