"""Run a hook with bash(1), and end it with all its children if a signal ends `up` or `down`.

A hook stays in the process group of the terminal, because it may ask for a password there. A signal to the group would
also reach `up` itself, so the hook's children are found by their parents.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from wyrmhole.cli.quick.deadline import Deadline
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.errors import DeviceError

SHELL = ("bash", "-e", "-o", "pipefail", "-c")
END_SECONDS = 2.0
"""How long a hook may take to end after SIGTERM."""


def run_hook(text: str, environment: Mapping[str, str], interrupts: Interrupts) -> int:
    """Run a hook and return the status of its shell. Raises DeviceError if bash is missing.

    A signal raises SystemExit. Then all processes of the hook have ended, except those in other process groups.
    """
    try:
        process = subprocess.Popen([*SHELL, text], env=environment)
    except FileNotFoundError:
        raise DeviceError("cannot run hooks: bash is not installed") from None
    try:
        with interrupts.waiting():
            return process.wait()
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the shell first, so that it starts no more commands, and then its children."""
    running = [descriptor for pid in _family(process.pid) if (descriptor := _open(pid)) is not None]
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in running:
                with suppress(OSError):
                    signal.pidfd_send_signal(descriptor, number)
            if _have_ended(running):
                break
    finally:
        for descriptor in running:
            os.close(descriptor)
    if not running:
        # Linux before 5.3 has no process descriptors: end only the shell.
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    process.kill()
    process.wait()


def _open(pid: int) -> int | None:
    """Open a process descriptor, because the number may be reused before the signal is sent."""
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _have_ended(running: list[int]) -> bool:
    """Wait for the end of all. Return False if some have not ended in END_SECONDS."""
    deadline = Deadline(END_SECONDS)
    poll = select.poll()
    for descriptor in running:
        poll.register(descriptor, select.POLLIN)
    left = len(running)
    while left:
        ended = poll.poll(deadline.remaining * 1000)
        if not ended:
            return False
        for descriptor, _ in ended:
            poll.unregister(descriptor)
        left -= len(ended)
    return True


def _family(pid: int) -> list[int]:
    """Return the process and all its descendants in the same process group."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    group = os.getpgid(pid)
    for process, parent, process_group in _processes():
        if process_group == group:
            children[parent].append(process)
    found = [pid]
    for member in found:
        found += children[member]
    return found


def _processes() -> Iterator[tuple[int, int, int]]:
    """Yield number, parent and process group of each process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            yield int(path.parent.name), int(fields[1]), int(fields[2])
