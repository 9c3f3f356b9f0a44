"""Find the present names of interfaces that were renamed while a daemon serves them. Their sockets keep the old name.

The kernel shows which process holds the TUN of an interface (`iff:` in /proc/PID/fdinfo) and on which socket file a
process listens (/proc/net/unix). Only root may read the descriptors of a daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")

_TUN = "/dev/net/tun"


def present_names(directory: str) -> dict[str, str]:
    """Map the name of each socket in `directory` to the present name of its interface, where /proc shows it."""
    sockets = _sockets_in(directory)
    found: dict[str, str] = {}
    if not sockets:
        return found
    for process in _processes():
        links = _descriptors(process)
        names = {name for fd, link in links if link == _TUN and (name := _interface_of(process, fd))}
        served = {sockets[link] for _, link in links if link in sockets}
        # A daemon holds one interface, with a descriptor for each queue.
        if len(names) == 1 and len(served) == 1:
            found[served.pop()] = names.pop()
    return found


def _sockets_in(directory: str) -> dict[str, str]:
    """Map `socket:[INODE]`, as in /proc/PID/fd, to the name of each socket that is bound in `directory`."""
    found = {}
    real = os.path.realpath(directory)
    with suppress(OSError):
        for line in (PROC / "net" / "unix").read_text(errors="surrogateescape").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            folder, _, name = fields[7].rpartition("/") if len(fields) == 8 else ("", "", "")
            if name.endswith(".sock") and os.path.realpath(folder) == real:
                found[f"socket:[{fields[6]}]"] = name.removesuffix(".sock")
    return found


def _processes() -> Iterator[Path]:
    with suppress(OSError):
        yield from (PROC / entry for entry in os.listdir(PROC) if entry.isascii() and entry.isdigit())


def _descriptors(process: Path) -> list[tuple[str, str]]:
    """Return number and link of each descriptor, or nothing if the process has ended or may not be inspected."""
    found = []
    with suppress(OSError):
        for fd in os.listdir(process / "fd"):
            with suppress(OSError):
                found.append((fd, os.readlink(process / "fd" / fd)))
    return found


def _interface_of(process: Path, fd: str) -> str:
    with suppress(OSError):
        for line in (process / "fdinfo" / fd).read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "iff":
                return value.strip()
    return ""
