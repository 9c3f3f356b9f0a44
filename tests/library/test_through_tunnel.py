"""Adapters, forwards and the proxy with a peer of another implementation, and witnesses outside."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.web_server import BIG
from tests.library.pixels import colors
from tests.support.site import RED, Site

pytestmark = pytest.mark.network

URLS = ["http://web.internal", "https://web.internal", "http://10.77.0.2", "http://[fd77::2]", "https://[fd77::2]"]
HELLO = ("hello 10.77.0.1", "hello fd77::1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after each test that the host's resolver got no question and the wire carried only the tunnel."""
    site: Site = request.getfixturevalue("site")
    yield
    site.assert_nothing_leaked()


def hello_from(url: str) -> tuple[str, ...]:
    return HELLO if "web" in url else HELLO[1:] if "[" in url else HELLO[:1]


def test_witnesses_notice_a_leak(site: Site) -> None:
    """The other tests rely on this: a question outside is recorded, and a stray packet is seen."""
    site.client.try_run("getent", "hosts", "stray.example")
    assert "stray.example" in str(site.outside.ask("asked"))
    site.client.send_udp("192.0.2.1", ("192.0.2.2", 53), b"stray")
    while not site.wire.strange():
        pass
    assert site.wire.strange()[0].endswith("to 53")
    site.wire.forget()


def test_adapters_reach_the_inside(site: Site) -> None:
    with site.program("fetch", site.config, site.authority) as program:
        for name in ("by_httpx", "by_httpx2", "by_aiohttp", "by_anyio"):
            for url in URLS:
                first, *rest = program.ask(name, url)
                assert first in hello_from(url)
                assert rest == [BIG, True]
    assert "web.internal" in str(site.inside.ask("asked"))
    assert site.wire.tunnel_packets > 1000


def test_blocking_adapters_reach_the_inside(site: Site) -> None:
    with site.program("fetch_blocking", site.config, site.authority) as program:
        for name in ("by_requests", "by_blocking_httpx", "by_blocking_httpx2"):
            for url in URLS:
                first, *rest = program.ask(name, url)
                assert first in hello_from(url)
                assert rest == [BIG, True]


@pytest.mark.parametrize("kind", ["socks5h", "http"])
@pytest.mark.parametrize("users", [(), ("ada:lovelace",)], ids=["open", "password"])
def test_curl_fetches_through_the_proxy(site: Site, kind: str, users: tuple[str, ...]) -> None:
    with site.program("proxy", site.config, *users) as program:
        words = ["curl", "-sS", "--fail", "--cacert", str(site.authority), "--max-time", "30"]
        words += [
            "--noproxy",
            "",
            "--proxy",
            f"{kind}://{''.join(f'{user}@' for user in users)}127.0.0.1:{program.hello}",
        ]
        for url in URLS:
            assert site.client.run(*words, f"{url}/") in hello_from(url)
            assert len(site.client.run(*words, f"{url}/big")) == BIG
        refused = site.client.try_run(*words, "http://10.77.0.2:1/")
        assert refused.returncode in (22, 97), "HTTP 502, or a refusal by the proxy"


def test_curl_without_the_password_is_refused(site: Site) -> None:
    with site.program("proxy", site.config, "ada:lovelace") as program:
        for kind, status in (("socks5h", 97), ("http", 22)):
            proxy = f"{kind}://ada:byron@127.0.0.1:{program.hello}"
            assert (
                site.client.try_run("curl", "-sS", "--fail", "--proxy", proxy, "http://10.77.0.2/").returncode == status
            )


def test_forwards_and_exposures_carry_data(site: Site) -> None:
    with site.program("carry", site.config) as program:
        web, udp = program.hello
        assert site.client.run("curl", "-sS", "--fail", f"http://127.0.0.1:{web}/") in HELLO
        with site.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.settimeout(20)
            client.connect(("127.0.0.1", udp))
            client.send(b"ping")
            assert client.recv(100) == b"re:ping"
        for host in ("10.77.0.1", "[fd77::1]"):
            assert site.peer.run("curl", "-sS", "--fail", "-g", f"http://{host}/") == "hello 127.0.0.1"
        for family, host in ((socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77::1")):
            with site.peer.entered():
                asker = socket.socket(family, socket.SOCK_DGRAM)
            with asker:
                asker.settimeout(20)
                asker.connect((host, 7))
                asker.send(b"ping")
                assert asker.recv(100) == b"re:ping"


def test_browser_shows_a_page_from_the_inside(site: Site, tmp_path: Path) -> None:
    """Debian's chromium uses SOCKS. The page is red, and no name is resolved outside."""
    browser = shutil.which("chromium")
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have a browser: run `make test-deps`")
        pytest.skip("no chromium: run `make test-deps`")
    picture = tmp_path / "page.png"
    with site.program("proxy", site.config) as program:
        site.client.run(
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=400,300",
            "--hide-scrollbars",
            f"--proxy-server=socks5://127.0.0.1:{program.hello}",
            f"--screenshot={picture}",
            "http://web.internal/color",
        )
    assert "web.internal" in str(site.inside.ask("asked"))
    found = colors(picture)
    assert found.most_common(1)[0][0] == RED
    assert found[RED] == found.total(), "the whole page is red"
