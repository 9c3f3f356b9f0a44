"""`wyrmhole proxy`, `forward` and `run` as programs with a peer of another implementation, and witnesses outside.

Each runs as root and as nobody. In every test the host's resolver receives no question, and the wire carries only the
tunnel. After their end, the programs leave nothing behind.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.users import USERS, environ, skip_unless_readable, wyrmhole_of
from tests.netns.host import end, until
from tests.netns.implementations import OTHERS
from tests.support.site import Site

pytestmark = pytest.mark.network

URLS = ("http://web.internal", "https://web.internal", "http://10.77.0.2", "https://[fd77::2]")
HELLO = ("hello 10.77.0.1", "hello fd77::1")
CURL = ("curl", "-sS", "--fail", "-g", "--max-time", "30", "--noproxy", "")
CURL_REFUSED_BY_PROXY = 97
CURL_NO_NAME = 6


@pytest.fixture(scope="module", params=OTHERS)
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("listeners"), request.param) as site:
        yield site


@pytest.fixture(autouse=True)
def nothing_leaks(site: Site) -> Iterator[None]:
    yield
    site.assert_nothing_leaked()


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    skip_unless_readable(request.param)
    return str(request.param)


@pytest.fixture
def folder(site: Site, user: str) -> Iterator[Path]:
    """Yield a folder of this user with a configuration, a trusted authority and a file of passwords."""
    folder = Path(tempfile.mkdtemp(prefix="wyrmhole-test-"))
    try:
        (folder / "wg0.conf").write_bytes(site.config.read_bytes())
        (folder / "authority.pem").write_bytes(site.authority.read_bytes())
        (folder / "users").write_text("ada:lovelace\n")
        for path in (folder, *folder.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if user == "nobody":
                shutil.chown(path, 65534, 65534)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def listener(site: Site, user: str, *words: str, by: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """Run a command that listens, and yield its address. A signal ends it, and nothing of it may remain."""
    before = traces(site)
    process = site.client.spawn(*wyrmhole_of(user, *words), output=subprocess.PIPE, environ=environ())
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("listening on "), first + process.stdout.read()
        helpers = children(process.pid)
        assert helpers, "a helper holds its namespace"
        yield first.removeprefix("listening on ").strip()
        process.send_signal(by)
        assert process.wait(20) == 0
        assert process.stdout.read() == "", "it ends silently"
        until(lambda: not any(Path(f"/proc/{helper}").exists() for helper in helpers), "its helper is gone")
        assert traces(site) == before
    finally:
        end(process)


def traces(site: Site) -> tuple[str, str, str]:
    """Return the listeners, interfaces and routes of the host."""
    return site.client.run("ss", "-Hltun"), site.client.ip("-o", "link"), site.client.ip("route")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [
        child for each in Path(f"/proc/{pid}/task").iterdir() for child in (each / "children").read_text().split()
    ]


def trusting(folder: Path) -> Sequence[str]:
    return (*CURL, "--cacert", str(folder / "authority.pem"))


# proxy


@pytest.mark.parametrize("kind", ["socks5h", "http"])
def test_curl_fetches_through_the_proxy(site: Site, user: str, folder: Path, kind: str) -> None:
    with listener(site, user, "proxy", str(folder / "wg0.conf"), "--listen", "127.0.0.1:0") as address:
        for url in URLS:
            words = (*trusting(folder), "--proxy", f"{kind}://{address}", f"{url}/")
            assert site.client.run(*words) in HELLO
    assert "web.internal" in str(site.inside.ask("asked"))


def test_proxy_with_users_serves_only_them(site: Site, user: str, folder: Path) -> None:
    config, users = str(folder / "wg0.conf"), str(folder / "users")
    with listener(
        site, user, "proxy", config, "--listen", "127.0.0.1:0", "--users", users, "--quiet", by=signal.SIGINT
    ) as address:
        fetch = (*CURL, "http://10.77.0.2/", "--proxy")
        assert site.client.run(*fetch, f"socks5h://ada:lovelace@{address}") == HELLO[0]
        for who in ("", "ada:byron@"):
            refused = site.client.try_run(*fetch, f"socks5h://{who}{address}")
            assert refused.returncode == CURL_REFUSED_BY_PROXY


def test_datagrams_go_through_the_proxy(site: Site, user: str, folder: Path) -> None:
    """UDP ASSOCIATE (RFC 1928, section 7), by name, IPv4 and IPv6."""
    with listener(site, user, "proxy", str(folder / "wg0.conf"), "--listen", "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        with site.client.entered():
            control = socket.create_connection((host, int(port)), 20)
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with control, datagrams:
            control.sendall(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
            answer = b"".join(iter_exactly(control, 2 + 10))
            assert answer[:4] == b"\x05\x00\x05\x00"
            datagrams.settimeout(20)
            datagrams.connect((socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:])))
            name = b"web.internal"
            for target in (
                b"\x01" + socket.inet_aton("10.77.0.2"),
                b"\x04" + socket.inet_pton(socket.AF_INET6, "fd77::2"),
                b"\x03" + bytes([len(name)]) + name,
            ):
                datagrams.send(bytes(3) + target + (7).to_bytes(2) + b"ping")
                assert datagrams.recv(100).endswith(b"re:ping")


def iter_exactly(sock: socket.socket, size: int) -> Iterator[bytes]:
    while size:
        data = sock.recv(size)
        assert data, "the connection ended early"
        size -= len(data)
        yield data


# forward


@pytest.mark.parametrize("target", ["web.internal:80", "10.77.0.2:80", "[fd77::2]:80"])
def test_client_reaches_the_inside_through_a_forward(site: Site, user: str, folder: Path, target: str) -> None:
    with listener(site, user, "forward", str(folder / "wg0.conf"), "127.0.0.1:0", target) as address:
        host, _, port = address.rpartition(":")
        with site.client.entered():
            client = socket.create_connection((host, int(port)), 20)
        with client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            page = b"".join(iter(lambda: client.recv(4096), b"")).decode()
        assert page.startswith("HTTP/1.1 200") and page.endswith(HELLO)


def test_datagrams_go_through_a_forward(site: Site, user: str, folder: Path) -> None:
    config = str(folder / "wg0.conf")
    with listener(site, user, "forward", config, "127.0.0.1:0", "[fd77::2]:7", "--udp", by=signal.SIGINT) as address:
        host, _, port = address.rpartition(":")
        with site.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.settimeout(20)
            client.connect((host, int(port)))
            client.send(b"ping")
            assert client.recv(100) == b"re:ping"


# run


@pytest.mark.parametrize("url", URLS)
def test_curl_runs_and_resolves_inside(site: Site, user: str, folder: Path, url: str) -> None:
    before = traces(site)
    words = ("run", str(folder / "wg0.conf"), "--", *trusting(folder), f"{url}/")
    assert site.client.run(*wyrmhole_of(user, *words), environ=environ()) in HELLO
    assert ("web.internal" in str(site.inside.ask("asked"))) == ("web" in url)
    assert traces(site) == before


def test_program_inside_cannot_query_servers_outside(site: Site, user: str, folder: Path) -> None:
    """It tries the host's resolver on loopback, a server next to the host, and a name that is unknown inside."""
    asks = (
        "import socket\n"
        "for server in ('127.0.0.53', '192.0.2.2'):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        sock.settimeout(0.2)\n"
        "        try:\n"
        "            sock.connect((server, 53))\n"
        "            sock.send(b'stray')\n"
        "            sock.recv(100)\n"
        "        except OSError as error:\n"
        "            print(type(error).__name__)\n"
    )
    command = wyrmhole_of(user, "run", str(folder / "wg0.conf"), "--", "/usr/bin/python3", "-c", asks)
    message = site.client.run(*command, environ=environ()).split()
    assert len(message) == 2, message
    command = wyrmhole_of(user, "run", str(folder / "wg0.conf"), "--", *CURL, "http://stray.internal/")
    assert site.client.try_run(*command, environ=environ()).returncode == CURL_NO_NAME
    assert "stray.internal" in str(site.inside.ask("asked"))


def test_witnesses_notice_a_leak(site: Site) -> None:
    """The other tests rely on this: the same curl without the tunnel is noticed by resolver and capture."""
    assert site.client.try_run(*CURL, "http://web.internal/").returncode == CURL_NO_NAME
    assert "web.internal" in str(site.outside.ask("asked"))
    site.client.send_udp("192.0.2.1", ("192.0.2.2", 53), b"stray")
    assert any(what.endswith("to 53") for what in site.wire.strange())
    site.wire.forget()
