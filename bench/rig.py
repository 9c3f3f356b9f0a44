"""The rig of the benchmarks: two network namespaces joined by a veth pair, a daemon in each, configured by `wg`.

All names are unique, because they contain the process id. Everything is removed at the end, even after a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wyrmhole.wire.messages import DEFAULT_MTU

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wyrmhole" / "bin"
os.environ["PATH"] += f":{CACHE}:/usr/sbin:/sbin"

IMPLEMENTATIONS = {
    "wyrmhole": f"{Path(sys.executable).parent / 'wyrmholed'} -f {{name}}",
    "portable": f"{Path(sys.executable).parent / 'wyrmholed'} -f --engine portable {{name}}",
    "wireguard-go": "wireguard -f {name}",
    "tailscale": "tailscale-wireguard -f {name}",
    "boringtun": "boringtun-cli -f --disable-drop-privileges {name}",
    "gotatun": "gotatun -f --disable-drop-privileges {name}",
}
MTU = DEFAULT_MTU
_numbers = itertools.count()


def sh(*command: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclass
class End:
    """One namespace and the daemon in it."""

    namespace: str
    name: str
    outer: str
    inner: str
    port: int
    private: str = ""
    public: str = ""
    process: subprocess.Popen[bytes] | None = None

    def exec(self, *command: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
        return sh("ip", "netns", "exec", self.namespace, *command, stdin=stdin, check=check, seconds=seconds)

    def start(self, command: str) -> None:
        words = ["ip", "netns", "exec", self.namespace, *command.format(name=self.name).split()]
        environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
        deadline = time.monotonic() + 20
        while not self.exec("wg", "show", self.name, "public-key", check=False):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"cannot start {command}: it exited or did not answer within 20 s")
            time.sleep(0.02)
        self.private = sh("wg", "genkey").strip()
        self.public = sh("wg", "pubkey", stdin=self.private).strip()
        self.exec(
            "wg", "set", self.name, "private-key", "/dev/stdin", "listen-port", str(self.port), stdin=self.private
        )
        sh("ip", "-n", self.namespace, "address", "add", f"{self.inner}/24", "dev", self.name)
        sh("ip", "-n", self.namespace, "link", "set", self.name, "mtu", str(MTU), "up")

    def know(self, other: End) -> None:
        words = ["peer", other.public, "allowed-ips", f"{other.inner}/32", "endpoint", f"{other.outer}:{other.port}"]
        self.exec("wg", "set", self.name, *words)

    def cpu_seconds(self) -> float:
        """Return the exact CPU time of all live threads."""
        assert self.process is not None
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def resident_mb(self) -> float:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        Path(f"/var/run/wireguard/{self.name}.sock").unlink(missing_ok=True)


@contextlib.contextmanager
def ends() -> Iterator[tuple[End, End]]:
    """Make two joined namespaces without daemons."""
    number = f"{os.getpid() % 100_000}-{next(_numbers)}"
    made = [
        End(f"bench-{number}-{side}", f"wb{number.replace('-', 'x')}{side}", f"10.99.0.{n}", f"10.88.0.{n}", 51819 + n)
        for n, side in enumerate("ab", start=1)
    ]
    a, b = made
    try:
        for end in made:
            sh("ip", "netns", "add", end.namespace)
            sh("ip", "-n", end.namespace, "link", "set", "lo", "up")
        sh("ip", "link", "add", "v0", "netns", a.namespace, "type", "veth", "peer", "name", "v0", "netns", b.namespace)
        for end in made:
            sh("ip", "-n", end.namespace, "address", "add", f"{end.outer}/24", "dev", "v0")
            sh("ip", "-n", end.namespace, "link", "set", "v0", "up")
        yield a, b
    finally:
        for end in made:
            end.stop()
            sh("ip", "netns", "del", end.namespace, check=False)


@contextlib.contextmanager
def pair(command: str) -> Iterator[tuple[End, End]]:
    """Start two connected daemons of one implementation, with an iperf3 server at the second."""
    with ends() as (a, b):
        for end in (a, b):
            end.start(command)
        a.know(b)
        b.know(a)
        a.exec("ping", "-c", "1", "-W", "5", b.inner)
        server = subprocess.Popen(
            ["ip", "netns", "exec", b.namespace, "iperf3", "-s", "-B", b.inner],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 10
            while ":5201" not in b.exec("ss", "-ltn"):
                if time.monotonic() > deadline:
                    raise RuntimeError("iperf3 does not listen after 10 s")
                time.sleep(0.02)
            yield a, b
        finally:
            server.kill()
            server.wait()


def machine() -> str:
    """Return one line that describes the machine and the commit."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    commit = sh("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD", check=False).strip()
    return (
        f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"commit {commit}"
    )


def write_section(title: str, lines: Sequence[str]) -> None:
    """Replace the section of this title in docs/benchmarks.md by the lines."""
    path = ROOT / "docs" / "benchmarks.md"
    text = path.read_text() if path.exists() else "# Benchmarks\n"
    head, marker, rest = text.partition(f"\n## {title}\n")
    tail = rest[rest.index("\n## ") :] if marker and "\n## " in rest else ""
    path.write_text(f"{head.rstrip()}\n\n## {title}\n\n" + "\n".join(lines).rstrip() + "\n" + tail)
