"""The ways in which people use a tunnel. Each returns the text that it prints about a tunnel that does not work.

doctor   `wyrmhole doctor CONFIG --name HOST`
library  a program with `wyrmhole.open` and `open_connection`
up       `wyrmhole up CONFIG`, traffic for the target, what it prints and its daemon logs at the default level
peer     the log of the peer at the default level, if the peer is wyrmhole too, while the client acts as for `up`
go       wireguard-go's log at LOG_LEVEL=verbose, with the same configuration and traffic, to compare
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ailments.ward import INSIDE, Ward
from tests.netns.host import until
from tests.netns.node import SOCKETS, Node, unique_name

WYRMHOLE = Path(sys.executable).with_name("wyrmhole")
PATIENCE = 60.0
"""Seconds until a program has a session, while all ailments run on two cores."""
RESOLVCONF = "#!/bin/sh\ncat > /dev/null\n"
"""Replaces resolvconf(8), so that the machine's own name servers stay unchanged."""


def doctor(ward: Ward) -> str:
    path = ward.write_config("doctor0")
    names = ["--name", ward.target] if ward.target != INSIDE else []
    result = ward.client.try_run(str(WYRMHOLE), "doctor", str(path), *names)
    return result.stdout + result.stderr


def library(ward: Ward) -> str:
    path, log = ward.write_config("library0"), ward.folder / "library.log"
    words = ("-m", "tests.ailments.try_library", str(path), ward.target, str(ward.port), str(ward.seconds))
    with log.open("w") as output:
        program = ward.client.spawn(sys.executable, *words, output=output)
    ward.lab.programs.append(program)
    if ward.meanwhile is not None:
        until(ward.has_session, "the library has a session", PATIENCE)
        ward.meanwhile()
    program.wait(120)
    return log.read_text()


def up(ward: Ward) -> str:
    with upped(ward) as (name, output):
        if name:
            _traffic(ward)
            return output + (SOCKETS / f"{name}.log").read_text()
        return output


def peer(ward: Ward) -> str:
    """Both sides send, because the peer may log problems that this side cannot see."""
    with upped(ward) as (name, _):
        assert name
        _traffic(ward)
        ward.peer.count_pings("10.77.0.1", count=2, wait=ward.seconds)
    return "".join(line for line in ward.node.log.open() if not line.startswith("DEBUG: "))


@contextmanager
def upped(ward: Ward) -> Iterator[tuple[str, str]]:
    """Yield the interface's name, empty if `up` failed, and the printed text."""
    path = ward.write_config(unique_name())
    program = ward.folder / "programs" / "resolvconf"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RESOLVCONF)
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:{os.environ['PATH']}", "WG_ENDPOINT_RESOLUTION_RETRIES": "1"}
    result = ward.client.try_run(str(WYRMHOLE), "up", str(path), environ=environ)
    output = result.stdout + result.stderr
    if result.returncode:
        yield "", output
        return
    try:
        yield path.stem, output
    finally:
        ward.client.run(str(WYRMHOLE), "down", str(path), environ=environ)


def go(ward: Ward) -> str:
    """Return wireguard-go's log, or wg's error if it refuses the file."""
    node = Node(ward.client, "wireguard-go", ward.folder, port=0)
    try:
        result = ward.client.try_run("wg", "setconf", node.name, "/dev/stdin", text=_stripped(ward))
        if result.returncode:
            return result.stderr
        node.assign(*([ward.address] if ward.address else []))
        ward.client.ip("link", "set", node.name, "up")
        for prefix in ward.allowed_ips:
            ward.client.try_run("ip", "route", "replace", prefix, "dev", node.name)
        _traffic(ward)
        return node.log.read_text()
    finally:
        node.stop()


def _stripped(ward: Ward) -> str:
    left_out = ("Address", "DNS", "MTU")
    return "\n".join(line for line in ward.config().splitlines() if not line.startswith(left_out)) + "\n"


def _traffic(ward: Ward) -> None:
    """Ping until an answer arrives, or until a silent peer would have been reported."""
    target = INSIDE if ward.target.endswith(".internal") else ward.target
    if ward.meanwhile is not None:
        assert ward.client.count_pings(target)
        ward.meanwhile()
    if ward.is_steady:
        ward.client.try_run("ping", "-q", "-n", "-i", "0.2", "-w", str(ward.seconds), target)
    else:
        ward.client.count_pings(target, count=2, wait=ward.seconds)


TREATMENTS: dict[str, Callable[[Ward], str]] = {
    "doctor": doctor,
    "library": library,
    "up": up,
    "peer": peer,
    "go": go,
}
