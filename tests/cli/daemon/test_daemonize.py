"""Going to the background: when the caller returns, its status, and what the daemon inherits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, sys
from wyrmhole.cli.daemon.daemonize import go_to_background, inherited_descriptors, open_standard_descriptors
open_standard_descriptors()
inherited = inherited_descriptors()
own = os.open("/dev/null", os.O_RDONLY)
caller = os.getpid()
readiness = go_to_background(keep_output={keep_output}, close=inherited)
facts = dict(caller=caller, pid=os.getpid(), session=os.getsid(0), directory=os.getcwd(),
    inherited=sorted(inherited), open=sorted(int(fd) for fd in os.listdir("/proc/self/fd")), own=own,
    places=[os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(3)])
with open({facts!r}, "w") as file:
    json.dump(facts, file)
{end}
"""


def run(
    tmp_path: Path, end: str, *, keep_output: bool = False, pass_fds: tuple[int, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    facts = tmp_path / "facts"
    program = PROGRAM.format(keep_output=keep_output, facts=str(facts), end=end)
    result = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        pass_fds=pass_fds,
    )
    return result, json.loads(facts.read_text())


def test_caller_returns_0_when_the_daemon_is_ready(tmp_path: Path) -> None:
    result, facts = run(tmp_path, "readiness.announce(); readiness.fail('too late')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert facts["pid"] != facts["caller"]


def test_caller_reports_why_the_daemon_failed(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "readiness.fail('no engine: build one')")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "wyrmholed: no engine: build one\n"


def test_caller_reports_the_death_of_the_daemon(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "os.kill(os.getpid(), 9)")
    assert result.returncode == 1
    assert result.stderr.startswith("wyrmholed: the daemon ended during its start: run it with -f")


def test_daemon_has_its_own_session_and_directory(tmp_path: Path) -> None:
    _, facts = run(tmp_path, "readiness.announce()")
    assert facts["directory"] == "/"
    assert facts["session"] not in (facts["caller"], os.getsid(0), facts["pid"])


def test_daemon_keeps_no_descriptor_of_the_caller(tmp_path: Path) -> None:
    with open(tmp_path / "inherited", "w") as inherited:
        _, facts = run(tmp_path, "readiness.announce()", pass_fds=(inherited.fileno(),))
        assert inherited.fileno() in facts["inherited"]
        assert inherited.fileno() not in facts["open"]
    assert facts["own"] in facts["open"]
    assert facts["places"] == ["/dev/null"] * 3


def test_daemon_keeps_its_output_if_it_logs(tmp_path: Path) -> None:
    result, facts = run(tmp_path, "readiness.announce(); print('a line')", keep_output=True)
    assert facts["places"][0] == "/dev/null" and "/dev/null" not in facts["places"][1:]
    assert result.stdout == "a line\n"


def test_tunnel_never_gets_a_standard_descriptor(tmp_path: Path) -> None:
    program = (
        "import os; [os.close(fd) for fd in (0, 1)];"
        "from wyrmhole.cli.daemon.daemonize import open_standard_descriptors as fill; fill();"
        "fd = os.open('/dev/null', os.O_RDONLY); os._exit(fd)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode > 2
