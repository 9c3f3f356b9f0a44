"""`wyrmhole run`: a program whose only network is the tunnel, as root and as nobody, with servers on another host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.users import USERS, environ, skip_unless_readable, wyrmhole_of
from tests.netns.host import Host, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, peer_section

pytestmark = pytest.mark.network


SERVERS = """
import http.server, socketserver, sys, threading

class Names(socketserver.BaseRequestHandler):
    '''Every name is 10.77.0.2, and has no IPv6 address.'''
    def handle(self):
        data, sock = self.request
        end = data.index(b"\\0", 12) + 5
        is_v4 = data[end - 3] == 1
        answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\5\\0\\4\\x0a\\x4d\\0\\2" if is_v4 else b""
        header = data[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if is_v4 else b"\\0\\0") + b"\\0\\0\\0\\0"
        sock.sendto(header + data[12:end] + answer, self.client_address)

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello {self.client_address[0]} {self.headers['Host']}".encode())

threading.Thread(target=socketserver.UDPServer(("10.77.0.2", 53), Names).serve_forever, daemon=True).start()
server = http.server.HTTPServer(("10.77.0.2", 80), Page)
print("ready", flush=True)
server.serve_forever()
"""


@dataclass
class Runner:
    host: Host
    config: Path
    is_root: bool

    def words(self, *command: str) -> Sequence[str]:
        return wyrmhole_of("root" if self.is_root else "nobody", "run", str(self.config), "--", *command)

    def __call__(self, *command: str, status: int = 0) -> str:
        result = self.host.try_run(*self.words(*command), environ=environ())
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@pytest.fixture(params=USERS)
def runner(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Runner:
    """Return a host whose only route leads to its neighbour, a peer with servers inside the tunnel."""
    skip_unless_readable(request.param)
    a, b = lab.neighbours()
    key = Key.generate()
    node = lab.node(b, SUBJECT, port=51821)
    node.configure(peer_section(key.public, *inner(1)))
    node.assign(*inner(2, 24, 64))
    node.up()
    servers = b.spawn(sys.executable, "-c", SERVERS, output=subprocess.PIPE)
    lab.programs.append(servers)
    assert servers.stdout is not None and servers.stdout.readline() == "ready\n"
    folder = Path("/tmp") / f"wyrmhole-run-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    config = folder / "inner0.conf"
    config.write_text(
        f"[Interface]\nPrivateKey = {key.private}\nAddress = 10.77.0.1/24, fd77::1/64\nDNS = 10.77.0.2, lab.example\n"
        + peer_section(node.key.public, "0.0.0.0/0", "::/0", endpoint="192.0.2.2:51821")
    )
    config.chmod(0o600)
    if request.param == "nobody":
        os.chown(config, 65534, 65534)
    return Runner(a, config, request.param == "root")


def test_program_reaches_an_inside_host_by_name(runner: Runner) -> None:
    program = "import urllib.request as u; print(u.urlopen('http://db.internal/', timeout=20).read().decode())"
    assert "hello 10.77.0.1 db.internal" in runner("/usr/bin/python3", "-c", program)


def test_tunnel_is_the_only_network_of_the_program(runner: Runner) -> None:
    links = runner("ip", "-o", "link")
    assert [line.split(":")[1].strip() for line in links.splitlines()] == ["lo", "inner0"]
    assert "nameserver 10.77.0.2\nsearch lab.example" in runner("cat", "/etc/resolv.conf")
    assert "inner0" not in runner.host.ip("link")
    rest = runner("sh", "-c", "ls /var/run/nscd /run/systemd/resolve 2>/dev/null; true")
    assert "socket" not in rest and "io.systemd" not in rest


def test_host_stays_unchanged(runner: Runner) -> None:
    before = Path("/etc/resolv.conf").read_text(), runner.host.ip("addr"), runner.host.ip("route")
    runner("true")
    assert before == (Path("/etc/resolv.conf").read_text(), runner.host.ip("addr"), runner.host.ip("route"))


def test_run_v_prints_handshakes(runner: Runner) -> None:
    def run(option: str) -> str:
        words = list(runner.words("ping", "-q", "-c", "1", "-W", "10", "10.77.0.2"))
        words.insert(words.index("run") + 1, option)
        result = runner.host.try_run(*words, environ=environ())
        assert result.returncode == 0, result.stderr
        return result.stderr

    message = run("-v")
    assert "wyrmhole: peer(" in message and "Received handshake response, keypair created" in message
    assert run("-q") == ""


def test_exit_status_is_that_of_the_program(runner: Runner) -> None:
    runner("sh", "-c", "exit 7", status=7)
    runner("sh", "-c", "kill -9 $$", status=137)
    assert "nosuch" in runner("/nosuch", status=127)


def test_program_keeps_its_user_and_gains_no_rights(runner: Runner) -> None:
    shown = runner("sh", "-c", "id -u; grep CapEff /proc/self/status; env")
    assert shown.startswith("0\n" if runner.is_root else "65534\n")
    if not runner.is_root:
        assert "CapEff:\t0000000000000000" in shown
    key = next(line for line in runner.config.read_text().splitlines() if line.startswith("PrivateKey"))
    assert key.partition("= ")[2] not in shown


def test_signal_ends_program_and_tunnel(runner: Runner) -> None:
    process = runner.host.spawn(
        *runner.words("sh", "-c", "echo started; exec sleep 1000"), output=subprocess.PIPE, environ=environ()
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_program_ends_with_a_killed_tunnel(runner: Runner) -> None:
    """It does not continue without a network, and never gets the host's."""
    process = runner.host.spawn(
        *runner.words("sh", "-c", "echo $$; exec sleep 1000"), output=subprocess.PIPE, environ=environ()
    )
    try:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        process.kill()
        process.wait()
        until(lambda: not Path(f"/proc/{program}").exists(), "the program ended")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sh", "-c", "trap '' TERM HUP; while true; do sleep 1000; done"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""


def test_program_that_ignores_signals_ends_with_the_tunnel(runner: Runner) -> None:
    """Its children end too, even in separate sessions."""
    process = runner.host.spawn(
        *runner.words("/usr/bin/python3", "-c", STUBBORN), output=subprocess.PIPE, environ=environ()
    )
    try:
        assert process.stdout is not None
        programs = process.stdout.readline().split()
        namespace = os.readlink(f"/proc/{programs[0]}/ns/net")
        process.kill()
        process.wait()
        until(lambda: not in_namespace(namespace), "every process of the namespace ended")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_processes_left_by_the_program_end_with_it(runner: Runner) -> None:
    shown = runner("sh", "-c", "readlink /proc/self/ns/net; sleep 1000 </dev/null >/dev/null 2>&1 &")
    until(lambda: not in_namespace(shown.strip()), "every process of the namespace ended")


def in_namespace(name: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(folder / "ns/net") == name:
                found.append(folder.name)
    return found


# Hosts that lack something. Each is set up in a mount namespace before the command starts.

HOSTS = {
    "a dangling link": "ln -s ../run/nothing/stub-resolv.conf /etc/resolv.conf",
    "missing": "true",
    "a directory": "mkdir /etc/resolv.conf",
    "unreadable": "echo nameserver 192.0.2.53 > /etc/resolv.conf; chmod 0 /etc/resolv.conf",
    "a link out of reach": "mkdir -m 700 /etc/closed; touch /etc/closed/r; ln -s closed/r /etc/resolv.conf",
}
LAY_ETC = """
set -e
mount -t tmpfs none /mnt -o size=4m && mkdir /mnt/u /mnt/w
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
rm -f /etc/resolv.conf
"""


def on_host(runner: Runner, made: str, *command: str) -> subprocess.CompletedProcess[str]:
    words = ("unshare", "-m", "--propagation", "private", "sh", "-c", f'{made}\nexec "$@"', "sh")
    return runner.host.try_run(*words, *runner.words(*command), environ=environ())


@pytest.mark.parametrize("kind", HOSTS)
def test_names_are_resolved_inside_with_any_resolv_conf(runner: Runner, kind: str) -> None:
    look = (
        "cat /etc/resolv.conf; ls -ld /etc/hostname /etc/ssl/certs/ /etc/localtime >/dev/null; test -r /etc/passwd &&"
        " /usr/bin/python3 -c 'import socket; print(socket.gethostbyname(\"x.internal\"))'"
    )
    result = on_host(runner, LAY_ETC + HOSTS[kind], "sh", "-c", look)
    assert result.returncode == 0, result.stderr
    assert "nameserver 10.77.0.2" in result.stdout and "192.0.2.53" not in result.stdout
    assert result.stdout.endswith("10.77.0.2\n"), result.stdout


def test_socket_of_a_host_resolver_is_out_of_reach(runner: Runner) -> None:
    """Resolvers listen for D-Bus (nss-resolve before systemd 247), varlink, nscd or avahi."""
    folders = ("/run/dbus", "/run/systemd/resolve", "/run/nscd", "/run/avahi-daemon")
    made = "mount -t tmpfs none /run\n" + "\n".join(
        f"mkdir -p {folder} && /usr/bin/python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"{folder}/bait\")'"
        for folder in folders
    )
    result = on_host(runner, f"set -e\n{made}", "sh", "-c", "find /run /var/run/ -name bait; echo looked")
    assert (result.returncode, result.stdout) == (0, "looked\n"), result.stderr


def test_disabled_family_is_left_out_with_a_warning(runner: Runner) -> None:
    """An MTU below IPv6's minimum disables the family, too."""
    text = runner.config.read_text()
    runner.config.write_text(text.replace("[Interface]", "[Interface]\nMTU = 1200"))
    result = runner.host.try_run(*runner.words("ip", "-o", "address"), environ=environ())
    assert result.returncode == 0, result.stderr
    assert "Warning: IPv6 needs an MTU of 1280, but the MTU is 1200: fd77::1/64" in result.stderr
    assert "10.77.0.1/24" in result.stdout and "fd77::1" not in result.stdout
    runner.config.write_text(text.replace("[Interface]", "[Interface]\nMTU = 1200").replace("10.77.0.1/24, ", ""))
    assert "add an address: IPv6 needs an MTU of 1280" in runner("true", status=1)


def test_unprivileged_ping_works_inside(runner: Runner) -> None:
    """A new namespace has an empty range of groups for ping. systemd sets only the range of the host."""
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    runner("/usr/bin/python3", "-c", program)


def test_read_only_proc_disables_only_unprivileged_ping(runner: Runner) -> None:
    result = on_host(runner, "mount -o bind,ro /proc/sys /proc/sys", "echo", "runs")
    assert (result.returncode, result.stdout) == (0, "runs\n"), result.stderr
    assert ("Warning: ping may need privileges inside" in result.stderr) == (not runner.is_root)


def test_ten_thousand_allowed_ips_exceed_no_limit(runner: Runner) -> None:
    prefixes = ", ".join(f"{20 + i // 65536}.{i // 256 % 256}.{i % 256}.0/25" for i in range(10_000))
    runner.config.write_text(runner.config.read_text().replace("0.0.0.0/0", prefixes))
    assert int(runner("sh", "-c", "ip -4 route | wc -l")) == 10_001, "one more is the network of Address"


def test_program_does_not_run_if_it_cannot_be_enclosed(runner: Runner) -> None:
    """Without a TUN the program does not start, in particular not in the host's network."""
    if runner.is_root:
        hide = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
        result = runner.host.try_run(*hide, *runner.words("echo", "outside"), environ=environ())
        assert result.returncode == 1 and "outside" not in result.stdout
        assert (
            "cannot isolate the program: opening /dev/net/tun: there is no /dev/net/tun: modprobe tun" in result.stderr
        )
    text = runner.config.read_text()
    runner.config.write_text(text.replace("Address", "#"))
    assert "no Address" in runner("echo", "outside", status=1)
