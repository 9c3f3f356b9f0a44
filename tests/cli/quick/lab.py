"""A laboratory for `up` and `down`: files that two programs use in turn, and the changes they make on a host."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.host import Host
from tests.netns.implementations import COMMANDS, SUBJECT
from tests.netns.lab import Lab
from tests.netns.node import SOCKETS, Key, peer_section, unique_name
from wyrmhole.cli.quick.holders import DAEMON_MODULE


@contextmanager
def laboratory(folder: Path) -> Iterator[Lab]:
    with Lab(folder) as lab:
        try:
            yield lab
        finally:
            for quick in Quick.made:
                quick.clean()
            Quick.made.clear()


def wyrmhole(host: Host, *words: str, text: str | None = None, **environ: str) -> str:
    return host.run(WYRMHOLE, *words, text=text, environ=environ)


class Quick:
    """One file that two programs use in turn. The laboratory removes whatever a failed test leaves up."""

    made: ClassVar[list[Quick]] = []

    def __init__(self, host: Host, folder: Path, text: str, programs: Path | None = None) -> None:
        self.made.append(self)
        self.host = host
        self.name = unique_name()
        self.file = folder / f"{self.name}.conf"
        self.file.touch(0o600)
        self.file.write_text(text)
        self.environ = {"WG_QUICK_USERSPACE_IMPLEMENTATION": COMMANDS[SUBJECT][0]}
        if programs is not None:
            self.environ["PATH"] = f"{programs}:{os.environ['PATH']}"

    def __call__(self, program: str, action: str) -> str:
        return self.host.run(program, action, str(self.file), environ=self.environ)

    def try_run(self, action: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run our program."""
        return self.host.try_run(WYRMHOLE, action, str(self.file), environ=self.environ | environ)

    def daemon(self) -> int:
        """Return the daemon's pid."""
        words = ["pgrep", "-f", f"{DAEMON_MODULE} {self.name}$"]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])

    def clean(self) -> None:
        self.host.try_run("ip", "link", "delete", self.name)
        for kind in ("sock", "log"):
            (SOCKETS / f"{self.name}.{kind}").unlink(missing_ok=True)

    def is_gone(self) -> bool:
        there = self.host.try_run("ip", "link", "show", self.name).returncode == 0
        return not there and not list(SOCKETS.glob(f"*{self.name}.*"))


def traces(host: Host) -> dict[str, str]:
    """Return all host state that a tunnel changes, without kernel-assigned numbers and the transient `tentative`."""
    commands = {
        "addresses": "ip -o address",
        "links": "ip -o link",
        "rules": "ip rule",
        "rules6": "ip -6 rule",
        "routes": "ip route show table all",
        "routes6": "ip -6 route show table all",
        "firewall": "nft list ruleset",
    }
    found = {name: host.run(*command.split()) for name, command in commands.items()}
    for name, text in found.items():
        lines = [line for line in text.splitlines() if "fe80:" not in line and "ff00::/8" not in line]
        found[name] = "\n".join(sorted(re.sub(r"^\d+: |qlen \d+|state \w+|tentative ", "", line) for line in lines))
    return found


FAKE_RESOLVCONF = """#!/bin/sh
echo "$@" >> {record}
[ "$1" = -a ] && cat >> {record}
exit 0
"""


EVERYTHING = "0.0.0.0/0, ::/0"


def conf(allowed_ips: str, more: str = "", address: str = "10.77.0.1/24", endpoint: str = "198.51.100.2:51821") -> str:
    interface = f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = {address}\n{more}"
    return interface + peer_section(Key.generate().public, allowed_ips, endpoint=endpoint)


def way(host: Host, address: str = "8.8.8.8") -> str:
    """Return the interface by which packets to the address leave."""
    return host.run("ip", "route", "get", address).split(" dev ")[1].split()[0]


def program(folder: Path, name: str, script: str) -> Path:
    """Make a stand-in for a program, and return its folder, for PATH."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    file = programs / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return programs


def with_dns(folder: Path) -> Path:
    return program(folder, "resolvconf", FAKE_RESOLVCONF.format(record=folder / "dns").partition("\n")[2])
