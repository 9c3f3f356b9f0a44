"""The real daemon, driven by the real wg(8) in a network namespace made here."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.host import BINARY, OTHER_PEER, PEER, PRIVATE, PSK, Host, refused, until

pytestmark = pytest.mark.network

# Life


def test_daemon_serves_on_return_and_ends_with_its_interface(host: Host) -> None:
    host.start()
    assert host.name in host.get("wg", "show", "interfaces").split()
    assert host.has_interface()
    host.get("ip", "link", "del", host.name)
    until(lambda: not host.pids())
    assert not host.socket.exists()


def test_daemon_is_detached_and_writes_no_core(host: Host) -> None:
    host.start()
    pid = host.daemon()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) not in (pid, os.getsid(0))
    assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.M)
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_daemon_cleanly_even_within_a_set(host: Host, number: signal.Signals) -> None:
    daemon = host.start_in_foreground()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        client.sendall(b"set=1\nlisten_port=1\n")
        daemon.send_signal(number)
        output, _ = daemon.communicate(timeout=20)
    assert (daemon.returncode, output) == (0, "")
    assert not host.socket.exists()
    assert not host.has_interface()


def test_removal_of_the_socket_file_ends_the_daemon(host: Host) -> None:
    daemon = host.start_in_foreground()
    host.socket.unlink()
    assert daemon.wait(timeout=20) == 0
    assert not host.has_interface()


def test_chmod_of_the_socket_file_does_not_end_the_daemon(host: Host) -> None:
    host.start()
    host.socket.chmod(0o600)
    assert host.is_served() and host.is_served()


def test_restart_right_after_deletion_of_the_interface_succeeds(host: Host) -> None:
    for _ in range(3):
        host.start()
        host.get("ip", "link", "del", host.name)
    host.start()
    assert host.is_served()


def test_killed_daemon_does_not_prevent_the_next(host: Host) -> None:
    daemon = host.start_in_foreground()
    (caretaker,) = set(host.pids()) - {host.daemon()}
    os.kill(caretaker, signal.SIGKILL)
    daemon.kill()
    daemon.communicate(timeout=20)
    assert host.socket.exists()
    host.start()
    assert host.is_served()


def test_socket_file_of_a_killed_daemon_is_removed(host: Host) -> None:
    daemon = host.start_in_foreground()
    daemon.kill()
    daemon.communicate(timeout=20)
    until(lambda: not host.socket.exists())


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_other_file_in_place_of_the_socket_is_one_clear_error(host: Host, kind: str) -> None:
    host.socket.parent.mkdir(mode=0o755, exist_ok=True)
    if kind == "directory":
        host.socket.mkdir()
    else:
        host.socket.touch() if kind == "file" else host.socket.symlink_to("nowhere")
    try:
        assert f"{host.socket} exists and is not a socket: remove it" in refused(host, str(BINARY), host.name)
    finally:
        host.socket.rmdir() if kind == "directory" else host.socket.unlink()
    assert not host.has_interface()


@pytest.mark.parametrize(
    ("lay", "sentence"),
    [
        ("mount -t tmpfs -o ro none /run/wireguard", "Read-only file system: mount a tmpfs on"),
        ("mount -t tmpfs none /run && touch /run/wireguard", "wireguard is not a directory: remove it"),
        ("mount -t tmpfs none /run && ln -s nowhere /run/wireguard", "wireguard is not a directory: remove it"),
        ("mount -t tmpfs -o mode=0777 none /run/wireguard", "other users can write to"),
    ],
)
def test_unusable_directory_is_one_clear_error(host: Host, lay: str, sentence: str) -> None:
    """This runs in a separate mount namespace, where /var/run is a link to /run."""
    host.socket.parent.mkdir(mode=0o755, exist_ok=True)
    words = ("unshare", "-m", "sh", "-c", f'{lay} && exec "$@"', "sh", str(BINARY), host.name)
    assert sentence in refused(host, *words)
    assert not host.has_interface()


def test_lock_of_another_user_does_not_prevent_the_start(host: Host) -> None:
    host.socket.parent.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(host.socket.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        host.start()
    finally:
        os.close(fd)


# Refusals


@pytest.mark.parametrize("flags", [[], ["-f"]])
def test_name_in_use_is_one_clear_error(host: Host, flags: list[str]) -> None:
    host.start()
    assert "another process holds the interface" in refused(host, str(BINARY), *flags, host.name)
    assert host.is_served()


def test_name_in_use_in_another_namespace_is_one_clear_error(host: Host) -> None:
    other = Host(f"{host.namespace}-b", host.name)
    subprocess.run(["ip", "netns", "add", other.namespace], check=True)
    try:
        host.start()
        assert "is in use by another process" in refused(other, str(BINARY), host.name)
        assert not other.has_interface()
    finally:
        subprocess.run(["ip", "netns", "del", other.namespace], check=True)


def test_interface_of_another_kind_is_one_clear_error(host: Host) -> None:
    assert "exists" in refused(host, str(BINARY), "lo")


def test_missing_privilege_is_one_clear_error(host: Host) -> None:
    sentence = refused(host, "setpriv", "--bounding-set=-net_admin", str(BINARY), host.name)
    assert "run as root" in sentence


def test_missing_engine_is_reported_by_the_starting_process(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from wyrmhole.engine import select; from wyrmhole.cli.daemon.main import main\n"
        "def none(kind, *, clock, options): raise select.EngineUnavailable('no engine: build one')\n"
        "select.select_engine = none; sys.exit(main(sys.argv[1:]))"
    )
    assert refused(host, sys.executable, "-c", program, host.name) == "wyrmholed: no engine: build one\n"
    assert not host.socket.exists() and not host.has_interface()


@pytest.mark.parametrize("variable", ["WG_TUN_FD", "WG_UAPI_FD"])
def test_descriptor_of_another_kind_is_one_clear_error(host: Host, variable: str) -> None:
    assert "descriptor 0" in refused(host, str(BINARY), host.name, **{variable: "0"})
    assert not host.has_interface()


# Inherited descriptors


@pytest.mark.parametrize("flags", [[], ["-f"]])
def test_inherited_tun_and_socket_are_used(host: Host, flags: list[str]) -> None:
    """This works in the background, too, unlike with wireguard-go."""
    program = f"""
import fcntl, os, socket, struct
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"{host.name}", 0x5001))
listener = socket.socket(socket.AF_UNIX)
listener.bind("{host.socket}"); listener.listen()
os.set_inheritable(tun, True); listener.set_inheritable(True)
os.environ.update(WG_TUN_FD=str(tun), WG_UAPI_FD=str(listener.fileno()))
os.execv("{BINARY}", ["wyrmholed", *{flags!r}, "{host.name}"])
"""
    host.socket.parent.mkdir(mode=0o755, exist_ok=True)
    daemon = host.start_in_foreground(sys.executable, "-c", program)
    assert host.name in host.get("wg", "show", "interfaces").split()
    assert " mtu 1420 " in host.get("ip", "link", "show", host.name), "the MTU that wireguard-go sets"
    host.end()
    assert daemon.wait(timeout=20) == 0
    assert not host.socket.exists() and not host.has_interface()


# Another name


@pytest.mark.parametrize("program", [str(BINARY), "wireguard"])
def test_renamed_interface_is_found_by_its_former_name(host: Host, program: str) -> None:
    wyrmhole, present = str(BINARY.with_name("wyrmhole")), f"{host.name}n"
    daemon = host.start_in_foreground(program, "-f", host.name)
    try:
        assert host.run(wyrmhole, "show", host.name).stderr == ""
        host.get("ip", "link", "set", host.name, "name", present)
        refused = host.run(wyrmhole, "show", present)
        assert refused.returncode == 1
        assert f"still uses the old name: use {host.name}" in refused.stderr
        for words in (("show", host.name), ("show",), ("show", "interfaces"), ("show", "all", "listen-port")):
            shown = host.run(wyrmhole, *words)
            assert shown.returncode == 0 and host.name in shown.stdout + shown.stderr
            assert f"Warning: {host.name} is now the interface {present}" in shown.stderr
        assert host.run(wyrmhole, "show", "no-such0").stderr.endswith("lists the interfaces that have a daemon\n")
        assert host.run(wyrmhole, "show", "lo").stderr.endswith("no user-space daemon serves it: use wg\n")
    finally:
        daemon.terminate()
        daemon.wait(20)


# Logs


@pytest.mark.parametrize("environ", [{"LOG_LEVEL": "error"}, {"LOG_LEVEL": ""}])
@pytest.mark.parametrize("text", ["listen_port=x", "garbage"])
def test_refused_set_is_logged(host: Host, text: str, environ: dict[str, str]) -> None:
    daemon = host.start_in_foreground(**environ)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        client.sendall(f"set=1\n{text}\n\n".encode())
        assert client.recv(100).startswith(b"errno=-")
    host.end()
    output, _ = daemon.communicate(timeout=20)
    assert re.search(rf"^ERROR: \({host.name}\) .* UAPI: refused an operation \(E\w+\): ", output, re.M), output


@pytest.mark.parametrize("engine", ["portable", "native"])
def test_mark_above_two_to_the_31_is_set_on_the_sockets(host: Host, engine: str) -> None:
    """SO_MARK is an unsigned 32-bit number."""
    host.start(WYRMHOLE_ENGINE=engine)
    host.get("ip", "link", "set", host.name, "up")
    command = str(BINARY.with_name("wyrmhole"))
    for mark, shown in (("2147483648", "0x80000000"), ("0xffffffff", "0xffffffff"), ("77", "0x4d"), ("0", "off")):
        host.get(command, "set", host.name, "fwmark", mark)
        assert host.get("wg", "show", host.name, "fwmark").strip() == shown
        assert host.get(command, "show", host.name, "fwmark").strip() == shown
        sockets = host.get("ss", "-H", "-u", "-a", "-n", "-e").splitlines()
        marks = re.findall(r"fwmark:(\w+)", "\n".join(sockets))
        assert sockets and marks == ([] if shown == "off" else [shown] * len(sockets))


def test_environment_sets_the_log_level(host: Host) -> None:
    daemon = host.start_in_foreground(LOG_LEVEL="verbose")
    host.end()
    output, _ = daemon.communicate(timeout=20)
    form = re.compile(rf"(DEBUG|ERROR): \({host.name}\) \d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \S.*")
    assert "Device started" in output
    assert all(form.fullmatch(line) for line in output.splitlines())


def test_logging_daemon_in_the_background_keeps_its_output(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        environ = {**os.environ, "LOG_LEVEL": "debug"}
        subprocess.run(host.command(str(BINARY), host.name), stdout=output, env=environ, timeout=30, check=True)
    host.end()
    assert "Device started" in log.read_text()


# wg(8)


def configure(host: Host) -> None:
    host.get("wg", "set", host.name, "private-key", "/dev/stdin", "listen-port", "0", text=PRIVATE)
    host.get(
        *("wg", "set", host.name, "fwmark", "0x1f", "peer", PEER, "preshared-key", "/dev/stdin"),
        *("endpoint", "127.0.0.1:51820", "persistent-keepalive", "25", "allowed-ips", "10.0.0.0/24,fd00::/64"),
        text=PSK,
    )


def test_settings_are_shown(host: Host) -> None:
    host.start()
    assert host.get("wg", "show", host.name, "dump") == "(none)\t(none)\t0\toff\n"
    configure(host)
    device, peer = host.get("wg", "show", host.name, "dump").splitlines()
    assert device.split("\t")[0] == PRIVATE and device.split("\t")[3] == "0x1f"
    assert peer.split("\t") == [PEER, PSK, "127.0.0.1:51820", "10.0.0.0/24,fd00::/64", "0", "0", "0", "25"]


def test_shown_configuration_can_be_set(host: Host, tmp_path: Path) -> None:
    host.start()
    configure(host)
    shown = host.get("wg", "showconf", host.name)
    saved = tmp_path / "saved.conf"
    saved.write_text(shown)
    host.get("wg", "set", host.name, "peer", PEER, "remove")
    host.get("wg", "setconf", host.name, str(saved))
    assert host.get("wg", "showconf", host.name) == shown


def test_addconf_adds_and_syncconf_replaces(host: Host, tmp_path: Path) -> None:
    host.start()
    configure(host)
    extra = tmp_path / "extra.conf"
    extra.write_text(f"[Peer]\nPublicKey = {OTHER_PEER}\nAllowedIPs = 10.0.1.0/24\n")
    host.get("wg", "addconf", host.name, str(extra))
    assert set(host.get("wg", "show", host.name, "peers").split()) == {PEER, OTHER_PEER}
    wanted = tmp_path / "wanted.conf"
    wanted.write_text(
        f"[Interface]\nPrivateKey = {PRIVATE}\n"
        f"[Peer]\nPublicKey = {OTHER_PEER}\nAllowedIPs = 10.0.1.0/24, 10.0.2.0/24\n"
    )
    host.get("wg", "syncconf", host.name, str(wanted))
    assert host.get("wg", "show", host.name, "allowed-ips") == f"{OTHER_PEER}\t10.0.1.0/24 10.0.2.0/24\n"


def test_scope_given_by_name_is_shown_by_name(host: Host) -> None:
    host.start()
    host.get("wg", "set", host.name, "peer", PEER, "endpoint", "[fe80::1%lo]:51820")
    assert host.get("wg", "show", host.name, "endpoints") == f"{PEER}\t[fe80::1%lo]:51820\n"


def test_port_in_use_is_refused_and_the_former_one_stays(host: Host) -> None:
    host.start()
    host.get("ip", "link", "set", host.name, "up")
    host.get("wg", "set", host.name, "listen-port", "40001")
    program = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 40002)); print(flush=True); input()"
    )
    with subprocess.Popen(
        host.command(sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        result = host.run("wg", "set", host.name, "listen-port", "40002", "peer", PEER, "allowed-ips", "10.0.0.0/8")
        owner.kill()
    assert result.returncode == 1 and "Address already in use" in result.stderr
    assert host.get("wg", "show", host.name, "listen-port") == "40001\n"
    assert host.get("wg", "show", host.name, "peers") == ""


def test_large_configuration_is_shown_completely(host: Host, tmp_path: Path) -> None:
    host.start()
    keys = [os.urandom(32) for _ in range(500)]
    peers = (
        f"public_key={key.hex()}\nendpoint=127.0.0.1:{number + 1}\nreplace_allowed_ips=true\n"
        + "".join(f"allowed_ip=10.{number >> 8}.{number & 255}.{part}/32\n" for part in range(10))
        for number, key in enumerate(keys)
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        client.sendall(f"set=1\n{''.join(peers)}\n".encode())
        assert client.recv(100) == b"errno=0\n\n"
    assert len(host.get("wg", "show", host.name, "peers").split()) == 500
    assert len(host.get("wg", "show", host.name, "allowed-ips").split()) == 500 * 11
