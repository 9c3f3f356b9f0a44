"""Start and end the daemon of an interface, for `up` and `down`.

The daemon writes to its own log, /run/wireguard/NAME.log, instead of the terminal of `up`: a program that reads the
output of `up` to its end would wait for the daemon. `up` also takes the reason of a refusal from the log, because the
UAPI reduces it to a number. The file exists from `up` to `down`, so after a crash it shows that remains are left.
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
from wyrmhole.cli.quick.holders import DAEMON_MODULE, Process, holder_of_udp_port, holder_of_unix_socket
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY, remove_if_dead
from wyrmhole.errors import DeviceError

START_SECONDS = 60.0
"""Many times the start time on a busy machine with one core."""

INTERRUPTED_START_SECONDS = 5.0
"""How long a start may continue after a signal that ends `up`."""

GONE_SECONDS = 5.0
"""How long a daemon may take to end after its interface was removed."""

POLL_SECONDS = 0.02
LOG_LIMIT = 16 << 20
"""In bytes. The daemon stops logging at this size, because /run is memory."""

_OWN_VARIABLES = ("WG_TUN_FD", "WG_UAPI_FD", "WG_PROCESS_FOREGROUND")
"""Variables for a daemon that another program starts. This daemon does not inherit the descriptors, and must not stay
in the foreground."""

_REFUSAL = re.compile(r"[A-Z]+: \(\S+\) \S+ \S+ UAPI: refused an operation \(\w+\): (.*)")


class Daemon:
    def __init__(self, name: str, directory: str = DEFAULT_DIRECTORY) -> None:
        self._name = name
        self.socket = Path(directory, f"{name}.sock")
        self.log = Path(directory, f"{name}.log")
        self.may_run = False
        """Whether this object started a daemon that must be ended if `up` fails."""

    # Start

    def start(self, interrupts: Interrupts, log_level: str = "error") -> None:
        """Start the daemon and wait until it answers. Raises DeviceError with the daemon's own reason."""
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
            # The daemon gets its own session, because Ctrl-C is for this program, which then ends the daemon.
            process = subprocess.Popen(
                [sys.executable, "-m", DAEMON_MODULE, self._name],
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
            # It refused to start, perhaps because another daemon has the name. Nothing here belongs to it.
            self.may_run = False
            raise DeviceError(f"the daemon did not start: {_last_words(log) or f'status {status}'}")

    def explain(self, port: int | None) -> str:
        """Return the logged reason of the last refusal, or nothing. `port` is the ListenPort of the file."""
        reasons = [match[1] for line in _tail(self.log) if (match := _REFUSAL.fullmatch(line))]
        reason = reasons[-1] if reasons else ""
        if port and f"port {port}" in reason and (holder := holder_of_udp_port(port)):
            reason += f" ({holder} has it)"
        return reason

    # End

    @property
    def process(self) -> Process | None:
        """The process that listens on the daemon's socket, running or stopped."""
        return holder_of_unix_socket(str(self.socket))

    def end(self) -> str | None:
        """Wait until the daemon ends, because its interface was removed.

        If it does not, kill it and return a warning.
        """
        process = self.process
        deadline = Deadline(GONE_SECONDS)
        while self.socket.exists() and not deadline.is_over:
            # Without CAP_SYS_PTRACE, as in most containers, the process is not found, and only its file is watched.
            if process is not None and (state := _state(process.pid)) in ("", "Z", "T"):
                return self._kill() if state == "T" else self._settle()
            time.sleep(POLL_SECONDS)
        return None if self._tidy() else self._kill()

    def _settle(self) -> str | None:
        """Clean up after the process. Its first thread may have ended while another still holds the socket."""
        deadline = Deadline(GONE_SECONDS)
        while not (is_tidy := self._tidy()) and not deadline.is_over:
            time.sleep(POLL_SECONDS)
        return None if is_tidy else f"a process still serves {self.socket}: stop it by hand"

    def _kill(self) -> str | None:
        # Looked up again, because the number may belong to another process now.
        if (process := self.process) is None:
            return self._settle()
        os.kill(process.pid, signal.SIGKILL)
        problem = self._settle()
        return problem or f"the daemon of {self._name} (pid {process.pid}) did not end and was killed"

    def _tidy(self) -> bool:
        """Remove the socket file of a killed daemon, and the log. Return False if a process serves the socket."""
        try:
            remove_if_dead(str(self.socket))
            self.log.unlink(missing_ok=True)
        except (OSError, DeviceError):
            return False
        return True


def _wait(process: subprocess.Popen[bytes], interrupts: Interrupts) -> int | None:
    """Return the status of the process, or None if it did not end and was killed."""
    deadline = Deadline(START_SECONDS)
    while not deadline.is_over:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.25)
        if interrupts.is_pending:
            deadline.shorten(INTERRUPTED_START_SECONDS)
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
    """Return the daemon's reason for its failure, or the last line of its log."""
    lines = [line for line in _tail(log) if line.strip()]
    reasons = [line for line in lines if line.startswith("wyrmholed: ")] or lines
    return reasons[-1].removeprefix("wyrmholed: ") if reasons else ""


def _state(pid: int) -> str:
    """Return the state in proc(5): T for stopped, Z for a zombie, or nothing if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
