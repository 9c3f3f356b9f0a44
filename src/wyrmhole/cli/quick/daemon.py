"""The daemon of one interface, as `up` starts it and `down` sees it off.

It writes to a log of its own, /run/wireguard/NAME.log. The terminal of `up` is not its place: whoever reads the output
of `up` to its end would wait for the daemon. From the log `up` also takes what the daemon said about a refusal, which
the UAPI reduces to a number. The file is there from `up` to `down`, so after a crash it shows that something is left.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from wyrmhole.cli.quick.deadline import Deadline
from wyrmhole.cli.quick.holders import Process, holder_of_udp_port, holder_of_unix_socket
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY, remove_if_dead
from wyrmhole.errors import DeviceError

START_SECONDS = 60.0
"""Many times what a start takes on a busy machine of one core."""

PATIENCE_SECONDS = 5.0
"""How long a start may go on after a signal that ends `up`."""

GONE_SECONDS = 5.0
"""How long a daemon whose interface is gone may take to end."""

POLL_SECONDS = 0.02
LOG_LIMIT = 16 << 20
"""Bytes; the daemon stops logging there, because /run is memory."""

_OWN_VARIABLES = ("WG_TUN_FD", "WG_UAPI_FD", "WG_PROCESS_FOREGROUND")
"""For a daemon that another program starts: the descriptors do not reach this one, and it must not stay in the
foreground."""

_REFUSAL = re.compile(r"[A-Z]+: \(\S+\) \S+ \S+ UAPI: refused an operation \(\w+\): (.*)")


class Daemon:
    def __init__(self, name: str, directory: str = DEFAULT_DIRECTORY) -> None:
        self._name = name
        self.socket = Path(directory, f"{name}.sock")
        self.log = Path(directory, f"{name}.log")
        self.may_run = False
        """Whether something of a start of this object's is left to take back."""

    # Start

    def start(self, interrupts: Interrupts, log_level: str = "error") -> None:
        """Returns when it answers. `log_level`: as LOG_LEVEL says it. Raises DeviceError with its own words."""
        log = self._new_log()
        try:
            self._start(log, interrupts, log_level)
            os.replace(log, self.log)
        except BaseException:
            with suppress(OSError):
                log.unlink()
            raise

    def _new_log(self) -> Path:
        try:
            self.log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(".log", f".{self._name}.", self.log.parent)
        except OSError as error:
            raise DeviceError(f"cannot write in {self.log.parent}: {error.strerror}") from error
        os.close(fd)
        return Path(name)

    def _start(self, log: Path, interrupts: Interrupts, log_level: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
        environment["LOG_LEVEL"] = log_level
        with log.open("ab") as file:
            # A session of its own: Ctrl-C is for this program, which then takes the daemon back.
            process = subprocess.Popen(
                [sys.executable, "-m", "wyrmhole.cli.daemon.main", self._name],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        with suppress(OSError, ValueError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LOG_LIMIT, LOG_LIMIT))
        self.may_run = True
        status = _wait(process, interrupts)
        if status is None:
            raise DeviceError(f"the daemon did not start in {START_SECONDS:.0f} s")
        if status:
            # It refused, perhaps because the name is another daemon's: then nothing here is this one's.
            self.may_run = False
            raise DeviceError(f"the daemon did not start: {_last_words(log) or f'status {status}'}")

    def explain(self, port: int | None) -> str:
        """What it logged about the last refusal; empty if nothing. `port`: the one that the file asks for."""
        words = [match[1] for line in _tail(self.log) if (match := _REFUSAL.fullmatch(line))]
        said = words[-1] if words else ""
        if port and f"port {port}" in said and (holder := holder_of_udp_port(port)):
            said += f" ({holder} has it)"
        return said

    # End

    @property
    def process(self) -> Process | None:
        """The process that listens on its socket, running or stopped."""
        return holder_of_unix_socket(str(self.socket))

    def end(self) -> str | None:
        """Wait until it ends, as a daemon does whose interface is gone. One that does not is killed. Returns a sentence
        about that."""
        process = self.process
        deadline = Deadline(GONE_SECONDS)
        while self.socket.exists() and not deadline.is_over:
            # Without CAP_SYS_PTRACE, as in most containers, the process is not found, and its file alone is watched.
            if process is not None and (state := _state(process.pid)) in ("", "Z", "T"):
                return self._kill() if state == "T" else self._settle()
            time.sleep(POLL_SECONDS)
        return None if self._tidy() else self._kill()

    def _settle(self) -> str | None:
        """After the process is gone: its first thread may be so while another still holds the socket."""
        deadline = Deadline(GONE_SECONDS)
        while not (is_tidy := self._tidy()) and not deadline.is_over:
            time.sleep(POLL_SECONDS)
        return None if is_tidy else f"a process still serves {self.socket}: stop it by hand"

    def _kill(self) -> str | None:
        # Asked for again, right before: a number of a process may be another's by now.
        if (process := self.process) is None:
            return self._settle()
        os.kill(process.pid, signal.SIGKILL)
        said = self._settle()
        return said or f"the daemon of {self._name} (pid {process.pid}) did not end and was killed"

    def _tidy(self) -> bool:
        """Remove the socket's file that a killed daemon leaves, and the log. False: a process serves the socket."""
        try:
            remove_if_dead(str(self.socket))
            self.log.unlink(missing_ok=True)
        except (OSError, DeviceError):
            return False
        return True


def _wait(process: subprocess.Popen[bytes], interrupts: Interrupts) -> int | None:
    """Its status; None: it did not end, and was killed."""
    deadline = Deadline(START_SECONDS)
    while not deadline.is_over:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.25)
        if interrupts.is_pending:
            deadline.shorten(PATIENCE_SECONDS)
    process.kill()
    process.wait()
    return None


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _last_words(log: Path) -> str:
    """The daemon's sentence about its failure, or its last line."""
    lines = [line for line in _tail(log) if line.strip()]
    said = [line for line in lines if line.startswith("wyrmholed: ")] or lines
    return said[-1].removeprefix("wyrmholed: ") if said else ""


def _state(pid: int) -> str:
    """As proc(5) writes it: T is stopped, Z a zombie; empty: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
