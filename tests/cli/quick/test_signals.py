"""Signals during `up`, and the output of `up`, `down` and the daemon."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.quick.lab import (
    EVERYTHING,
    Quick,
    conf,
    traces,
)
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.host import end, until
from tests.netns.lab import Lab
from tests.netns.node import SOCKETS

pytestmark = pytest.mark.network

SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("line", ["exec sleep", "wyrmholed"])
@pytest.mark.parametrize("number", SIGNALS)
def test_up_ended_by_a_signal_leaves_nothing(lab: Lab, tmp_path: Path, number: signal.Signals, line: str) -> None:
    """`line` is the last output before the signal, which arrives during the daemon's start or during a hook."""
    client, _, _ = lab.routed()
    quick = Quick(client, tmp_path, conf(EVERYTHING, "PostUp = exec sleep 1000\n"))
    before = traces(client)
    # A shell ignores some signals in background jobs, and the tests may run in one.
    words = ("env", "--default-signal=HUP,INT,QUIT", WYRMHOLE, "up", str(quick.file))
    process = client.spawn(*words, output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        until(lambda: line in process.stdout.readline(), line)  # type: ignore[union-attr]
        process.send_signal(number)
        process.stdout.close()  # like a closed terminal
        assert process.wait(60) == 128 + number
    finally:
        end(process)
    assert quick.is_gone() and traces(client) == before


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_hook_ended_by_a_signal_leaves_no_children(lab: Lab, tmp_path: Path, deaf: str) -> None:
    """Children that left its process group, to run on after the hook, are not affected."""
    client, _ = lab.neighbours()
    own, other = (str(1_000_000 + number) for number in random.sample(range(10**6), 2))
    hook = f"{deaf}setsid sleep {other} & sleep {own} | cat; true"
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", f"PostUp = {hook}\n"))
    process = client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.DEVNULL)
    try:
        for seconds in (own, other):
            until(lambda seconds=seconds: sleepers(seconds), "the hook's children")  # type: ignore[misc]
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not sleepers(own)
        assert sleepers(other)
    finally:
        end(process)
        for pid in sleepers(own) + sleepers(other):
            os.kill(pid, signal.SIGKILL)
    assert quick.is_gone()


def sleepers(seconds: str) -> list[int]:
    words = ["pgrep", "--full", "--exact", f"sleep {seconds}"]
    return [int(pid) for pid in subprocess.run(words, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("environ", [{"LOG_LEVEL": "debug"}, {"LOG_LEVEL": "error"}, {"WG_PROCESS_FOREGROUND": "1"}])
def test_output_of_up_ends_before_the_daemon_does(lab: Lab, tmp_path: Path, environ: dict[str, str]) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    assert quick.try_run("up", **environ).returncode == 0
    log = SOCKETS / f"{quick.name}.log"
    assert log.stat().st_mode & 0o777 == 0o600
    assert ("Device started" in log.read_text()) == (environ.get("LOG_LEVEL") == "debug")
    quick(WYRMHOLE, "down")
    assert quick.is_gone()


@pytest.mark.parametrize("level", ["error", "debug"])
def test_up_v_makes_the_daemon_log_handshakes_to_a_file(lab: Lab, tmp_path: Path, level: str) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    result = client.try_run(WYRMHOLE, "up", "-v", str(quick.file), environ=quick.environ | {"LOG_LEVEL": level})
    log = SOCKETS / f"{quick.name}.log"
    assert result.returncode == 0 and f"[#] wyrmholed logs to {log}\n" in result.stderr
    assert "Interface up requested" in log.read_text() and " - Starting" in log.read_text()


def test_up_q_and_down_q_print_no_steps(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8"))
    for action in ("up", "down"):
        result = client.try_run(WYRMHOLE, action, "-q", str(quick.file), environ=quick.environ)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = client.try_run(WYRMHOLE, "down", "-q", str(quick.file), environ=quick.environ)
    assert result.returncode == 1 and result.stderr.startswith("wyrmhole: ")


def test_port_in_use_is_reported_with_its_holder(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick, other = (Quick(client, tmp_path, conf("10.0.0.0/8", "ListenPort = 51899\n")) for _ in range(2))
    with client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 51899))
        result = quick.try_run("up")
    assert result.returncode == 1 and "UDP port 51899: Address already in use" in result.stderr
    assert f"(pid {os.getpid()}) has it" in result.stderr and quick.is_gone()
    other(WYRMHOLE, "up")
    assert f"the daemon of {other.name} (pid " in quick.try_run("up").stderr
    other(WYRMHOLE, "down")
