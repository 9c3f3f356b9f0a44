"""The ways in which people use a tunnel, each giving the text that it prints about one that does not work.

doctor   `wyrmhole doctor CONFIG --name HOST`
library  a program with `wyrmhole.open` and `open_connection`
up       `wyrmhole up CONFIG`, what it and its daemon print, with traffic for the target
go       wireguard-go's log at LOG_LEVEL=verbose, with the same configuration and traffic, to compare
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.ailments.ward import Ward
from tests.netns.node import Node

WYRMHOLE = Path(sys.executable).with_name("wyrmhole")
SECONDS = 17
"""A peer is called silent after 15 s."""


def doctor(ward: Ward) -> str:
    path = ward.write_config("doctor0")
    names = ["--name", ward.target] if not ward.target[0].isdigit() else []
    result = ward.client.try_run(str(WYRMHOLE), "doctor", str(path), *names)
    return result.stdout + result.stderr


def library(ward: Ward) -> str:
    path = ward.write_config("library0")
    words = (sys.executable, "-m", "tests.ailments.try_library", str(path), ward.target, str(ward.port), str(SECONDS))
    result = ward.client.try_run(*words)
    return result.stdout + result.stderr


def go(ward: Ward) -> str:
    """What wireguard-go logs; where the file itself is refused, what wg says about it."""
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
    target = ward.target if ward.target[0].isdigit() else "10.77.0.2"
    ward.client.count_pings(target, count=2, wait=SECONDS)


TREATMENTS: dict[str, Callable[[Ward], str]] = {"doctor": doctor, "library": library, "go": go}
