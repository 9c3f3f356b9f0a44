"""`wyrmhole run`: a program in a tunnel and in nothing else, as root and as nobody, to another host's servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
    """A host without a way to anywhere but its neighbour, on which a peer with servers inside the tunnel is."""
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


def test_a_program_reaches_what_is_inside_by_its_name(runner: Runner) -> None:
    program = "import urllib.request as u; print(u.urlopen('http://db.internal/', timeout=20).read().decode())"
    assert "hello 10.77.0.1 db.internal" in runner("/usr/bin/python3", "-c", program)


def test_the_tunnel_is_its_only_network(runner: Runner) -> None:
    links = runner("ip", "-o", "link")
    assert [line.split(":")[1].strip() for line in links.splitlines()] == ["lo", "inner0"]
    assert "nameserver 10.77.0.2\nsearch lab.example" in runner("cat", "/etc/resolv.conf")
    assert "inner0" not in runner.host.ip("link")
    rest = runner("sh", "-c", "ls /var/run/nscd /run/systemd/resolve 2>/dev/null; true")
    assert "socket" not in rest and "io.systemd" not in rest


def test_nothing_of_the_host_changes(runner: Runner) -> None:
    before = Path("/etc/resolv.conf").read_text(), runner.host.ip("addr"), runner.host.ip("route")
    runner("true")
    assert before == (Path("/etc/resolv.conf").read_text(), runner.host.ip("addr"), runner.host.ip("route"))


def test_the_status_is_that_of_the_program(runner: Runner) -> None:
    runner("sh", "-c", "exit 7", status=7)
    runner("sh", "-c", "kill -9 $$", status=137)
    assert "nosuch" in runner("/nosuch", status=127)


def test_who_runs_it_stays_who_it_is_and_gains_nothing(runner: Runner) -> None:
    shown = runner("sh", "-c", "id -u; grep CapEff /proc/self/status; env")
    assert shown.startswith("0\n" if runner.is_root else "65534\n")
    if not runner.is_root:
        assert "CapEff:\t0000000000000000" in shown
    key = next(line for line in runner.config.read_text().splitlines() if line.startswith("PrivateKey"))
    assert key.partition("= ")[2] not in shown


def test_a_signal_ends_the_program_and_the_tunnel(runner: Runner) -> None:
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


def test_a_tunnel_that_is_killed_takes_the_program_with_it(runner: Runner) -> None:
    """It does not live on without a network, and never with the host's."""
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


def test_what_cannot_be_enclosed_does_not_run(runner: Runner) -> None:
    """Without a TUN there is no program, least of all one in the host's network."""
    if runner.is_root:
        hide = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
        result = runner.host.try_run(*hide, *runner.words("echo", "outside"), environ=environ())
        assert result.returncode == 1 and "outside" not in result.stdout
        assert "open /dev/net/tun: ENOENT" in result.stderr
    text = runner.config.read_text()
    runner.config.write_text(text.replace("Address", "#"))
    assert "no Address" in runner("echo", "outside", status=1)
