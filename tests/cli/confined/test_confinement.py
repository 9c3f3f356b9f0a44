"""The real daemon after it dropped its privileges: they are gone, and later operations still work."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.host import BINARY, PEER, PRIVATE, Host, refused, until
from wyrmhole.engine.select import has_native

pytestmark = pytest.mark.network

KEPT = 1 << 10 | 1 << 11 | 1 << 12
NOBODY = 65534


def statuses(pid: int) -> list[dict[str, str]]:
    """Return /proc's status of each thread."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return [dict(re.findall(r"^(\w+):\t(.*)$", text, re.M)) for text in texts]


def daemon_of(host: Host) -> int:
    """Return the process id of the daemon, not of its caretaker."""
    (pid,) = [pid for pid in host.pids() if statuses(pid)[0]["Seccomp"] == "2"]
    return pid


def test_every_thread_has_only_the_needed_privileges(host: Host) -> None:
    host.start()
    threads = statuses(daemon_of(host))
    assert len(threads) >= 2
    for status in threads:
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == KEPT
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0


@pytest.mark.parametrize("option", [["--no-sandbox"], []])
def test_sandbox_can_be_disabled(host: Host, option: list[str]) -> None:
    environ = {} if option else {"WYRMHOLE_SANDBOX": "off"}
    assert host.run(str(BINARY), *option, host.name, **environ).returncode == 0
    (pid,) = host.pids()
    assert {status["Seccomp"] for status in statuses(pid)} == {"0"}


@pytest.mark.parametrize(
    ("user", "engine", "workers"),
    [(None, "auto", 1), (None, "portable", 1), (None, "auto", 2), ("nobody", "auto", 1), ("nobody", "portable", 1)],
)
def test_later_operations_still_work(host: Host, user: str | None, engine: str, workers: int) -> None:
    """Set a low port, a mark, another MTU, a scope by name and peers, toggle the link, and connect a second client."""
    environ = {"WYRMHOLE_ENGINE": engine, "WYRMHOLE_WORKERS": str(workers)}
    host.start(**environ, **({} if user is None else {"WYRMHOLE_USER": user}))
    sockets = 2 * (workers if has_native() else 1)
    name = host.name
    host.get("wg", "set", name, "private-key", "/dev/stdin", "listen-port", "40000", text=PRIVATE)
    host.get("ip", "link", "set", name, "up")
    until(lambda: ":40000 " in host.get("ss", "-Huln"))
    host.get("wg", "set", name, "listen-port", "53", "fwmark", "0x1f")
    assert host.get("ss", "-Huln").count(":53 ") == sockets
    host.get("ip", "link", "set", name, "down")
    until(lambda: ":53 " not in host.get("ss", "-Huln"))
    host.get("ip", "link", "set", name, "mtu", "1300", "up")
    until(lambda: host.get("ss", "-Huln").count(":53 ") == sockets)
    host.get("wg", "set", name, "fwmark", "0", "peer", PEER, "endpoint", "[fe80::1%lo]:9", "allowed-ips", "10.0.0.0/8")
    assert host.get("wg", "show", name, "endpoints") == f"{PEER}\t[fe80::1%lo]:9\n"
    host.get("ip", "link", "del", name)
    until(lambda: not host.pids())
    assert not host.socket.exists()


@pytest.mark.parametrize("engine", ["auto", "portable"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_removes_the_socket_file_despite_the_sandbox(host: Host, engine: str, workers: str) -> None:
    """The caretaker removes it before the process is gone."""
    for _ in range(3):
        daemon = host.start_in_foreground(WYRMHOLE_ENGINE=engine, WYRMHOLE_WORKERS=workers)
        daemon_pid = host.daemon()
        assert host.socket.exists()
        os.kill(daemon_pid, signal.SIGTERM)
        output, _ = daemon.communicate(timeout=20)
        assert (daemon.returncode, output) == (0, "")
        assert not host.socket.exists() and not host.has_interface()
        until(lambda: not host.pids())


def test_hanging_caretaker_does_not_delay_the_end(host: Host) -> None:
    daemon = host.start_in_foreground()
    (caretaker,) = set(host.pids()) - {host.daemon()}
    os.kill(caretaker, signal.SIGSTOP)
    try:
        os.kill(host.daemon(), signal.SIGTERM)
        daemon.communicate(timeout=20)
        assert daemon.returncode == 0
    finally:
        os.kill(caretaker, signal.SIGCONT)
    until(lambda: not host.socket.exists())


def test_daemon_cannot_read_files_of_root(host: Host) -> None:
    """This needs Landlock in the kernel. The log shows whether it is used."""
    daemon = host.start_in_foreground(LOG_LEVEL="debug")
    host.end()
    output, _ = daemon.communicate(timeout=20)
    assert re.search(
        r"Files are (confined by Landlock, version \d+|not confined, Landlock is not available: .+)", output
    )


def test_interface_moved_to_another_namespace_is_followed(host: Host) -> None:
    host.start()
    other = f"{host.namespace}-b"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        host.get("ip", "link", "set", host.name, "netns", other)
        host.get("wg", "set", host.name, "private-key", "/dev/stdin", "listen-port", "40000", text=PRIVATE)
        subprocess.run(["ip", "-n", other, "link", "set", host.name, "up"], check=True)
        until(lambda: ":40000 " in host.get("ss", "-Huln"))
    finally:
        subprocess.run(["ip", "netns", "del", other], check=True)
    until(lambda: not host.pids())


def test_daemon_runs_as_another_user_with_a_powerless_caretaker(host: Host) -> None:
    daemon = host.start_in_foreground(str(BINARY), "-f", "--user", "nobody", host.name)
    pid = daemon_of(host)
    assert {status["Uid"] for status in statuses(pid)} == {f"{NOBODY}\t" * 3 + f"{NOBODY}"}
    assert {status["Groups"].strip() for status in statuses(pid)} == {""}
    # /proc files of a process belong to its user only while the process is dumpable.
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.M)
    assert host.socket.stat().st_uid == NOBODY
    (caretaker,) = set(host.pids()) - {pid}
    until(lambda: {int(statuses(caretaker)[0][name], 16) for name in ("CapPrm", "CapBnd")} == {0})
    assert len(os.listdir(f"/proc/{caretaker}/fd")) == 5, "/dev/null three times, and two pipes"
    daemon.kill()
    daemon.communicate(timeout=20)
    until(lambda: not host.socket.exists())
    until(lambda: not host.pids())


def test_caretaker_leaves_the_socket_of_the_next_daemon_alone(host: Host) -> None:
    for _ in range(3):
        host.start(WYRMHOLE_USER="nobody")
        host.get("ip", "link", "del", host.name)
    host.start(WYRMHOLE_USER="nobody")
    until(lambda: len(host.pids()) == 2)
    assert host.is_served()
    host.end()
    until(lambda: not host.socket.exists())


@pytest.mark.parametrize("flags", [[], ["-f"]])
def test_unknown_user_is_one_clear_error(host: Host, flags: list[str]) -> None:
    sentence = refused(host, str(BINARY), *flags, "--user", "no-such-user", host.name)
    assert "unknown user 'no-such-user'" in sentence
    assert not host.socket.exists() and not host.has_interface()


def test_nothing_is_imported_after_privileges_are_dropped(host: Host) -> None:
    """The daemon's user may be unable to read the library."""
    program = (
        "import sys; from wyrmhole.sandbox import confine; from wyrmhole.cli.daemon.main import main\n"
        "real = confine.drop_privileges\n"
        "def drop(*args, **kwargs):\n"
        "    real(*args, **kwargs)\n"
        "    sys.addaudithook(lambda event, args: print(event, args[0], flush=True) if event == 'import' else None)\n"
        "confine.drop_privileges = drop; sys.exit(main(sys.argv[1:]))"
    )
    daemon = host.start_in_foreground(sys.executable, "-c", program, "-f", host.name, LOG_LEVEL="debug")
    host.get("wg", "set", host.name, "private-key", "/dev/stdin", "peer", PEER, text=PRIVATE)
    host.get("wg", "set", host.name, "peer", PEER, "endpoint", "127.0.0.1:9", "allowed-ips", "10.0.0.0/8")
    host.get("ip", "address", "add", "10.0.0.1/24", "dev", host.name)
    host.get("ip", "link", "set", host.name, "up")
    host.run("ping", "-c", "1", "-W", "0.1", "10.0.0.2")
    host.get("ip", "link", "del", host.name)
    output, _ = daemon.communicate(timeout=20)
    assert daemon.returncode == 0 and "import" not in output, output


def test_service_manager_is_notified_of_states(host: Host, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000"}
        daemon = host.start_in_foreground(**environ)
        heard = [manager.recv(100).decode() for _ in range(4)]
        host.end()
        while (last := manager.recv(100)) == b"WATCHDOG=1":
            continue
        daemon.communicate(timeout=20)
    assert heard == ["READY=1", *["WATCHDOG=1"] * 3]
    assert last == b"STOPPING=1"


def test_daemon_runs_under_the_restrictions_of_the_unit(host: Host) -> None:
    """Three ambient capabilities, a read-only file system, and no memory that is both writable and executable."""
    program = f"""
import ctypes, os, socket
listener = socket.socket(socket.AF_UNIX); listener.bind("{host.socket}"); listener.listen()
os.dup2(listener.fileno(), 3) if listener.fileno() != 3 else listener.set_inheritable(True)
os.environ["WG_UAPI_FD"] = "3"
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, where the kernel has it
kept = "-all,+net_admin,+net_bind_service,+net_broadcast"
os.execvp("setpriv", ["setpriv", "--securebits", "+noroot,+noroot_locked", "--inh-caps", kept, "--ambient-caps", kept,
    "--bounding-set", kept, "--no-new-privs", "{BINARY}", "-f", "{host.name}"])
"""
    host.socket.parent.mkdir(mode=0o755, exist_ok=True)
    daemon = host.start_in_foreground(sys.executable, "-c", program)
    assert {status["CapEff"] for status in statuses(daemon.pid)} == {f"{KEPT:016x}"}
    host.get("wg", "set", host.name, "private-key", "/dev/stdin", "listen-port", "53", "fwmark", "3", text=PRIVATE)
    host.get("ip", "link", "set", host.name, "up")
    until(lambda: host.get("ss", "-Huln").count(":53 ") == 2)
    host.end()
    assert daemon.wait(timeout=20) == 0
