"""A network namespace with a real daemon in it, driven by the real wg(8)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wyrmhole.cli.daemon.caretaker import COMMAND as CARETAKER

BINARY = Path(sys.executable).with_name("wyrmholed")
PEER = "u1KEpbsIaXFFWWLEYGbYlqkNOVoRZn3ruYsKQzNSF1A="
OTHER_PEER = "BOCBSJzg6CYW5xMQBYXp8Zj0dRkWzbCVjTyR2yPl8hY="
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PSK = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="


class Host:
    """A network namespace, and an interface name that no other test uses: socket files are not per namespace."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.socket = Path(f"/var/run/wireguard/{name}.sock")

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def run(self, *words: str, text: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            input=text,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def get(self, *words: str, text: str = "") -> str:
        result = self.run(*words, text=text)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def start(self, **environ: str) -> None:
        result = self.run(str(BINARY), self.name, **environ)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def start_in_foreground(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        daemon = subprocess.Popen(
            self.command(*(words or (str(BINARY), "-f", self.name))),
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(self.is_served)
        return daemon

    def is_served(self) -> bool:
        return self.run("wg", "show", self.name).returncode == 0

    def has_interface(self) -> bool:
        return self.run("ip", "link", "show", self.name).returncode == 0

    def pids(self) -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", f"wyrmholed.* {self.name}$"], capture_output=True, text=True, check=False
        )
        return [pid for pid in map(int, found.stdout.split()) if is_alive(pid)]

    def daemon(self) -> int:
        """Return the process id of the daemon, which may have a caretaker."""
        (pid,) = [pid for pid in self.pids() if Path(f"/proc/{pid}/comm").read_text().strip() != CARETAKER]
        return pid

    def end(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGTERM)
        until(lambda: not self.pids())


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.01)


def refused(host: Host, *words: str, **environ: str) -> str:
    result = host.run(*words, **environ)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("wyrmholed: ") and result.stderr.count("\n") == 1
    return result.stderr
