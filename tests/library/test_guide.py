"""Blocks of docs/guide.md and examples, run unchanged with a wireguard-go peer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.library import postgresql
from tests.library.guide import BLOCKS, CHECKS
from tests.support.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("guide")) as site:
        yield site


@pytest.mark.network
@pytest.mark.parametrize("name", CHECKS)
def test_block_of_the_guide_works(site: Site, name: str, tmp_path: Path) -> None:
    code = tmp_path / "block.py"
    code.write_text(f"{BLOCKS[name]}\n{CHECKS[name]}\n")
    with site.program("run_blocking" if name == "requests" else "run", site.config, site.authority, code) as program:
        assert program.hello == "done"
    site.assert_nothing_leaked()


@pytest.mark.network
def test_example_fetches_a_page(site: Site) -> None:
    page = site.run_python("examples/fetch_page.py", str(site.config), "http://web.internal/")
    assert page.startswith("hello")
    site.assert_nothing_leaked()


@pytest.mark.network
def test_example_is_a_proxy_for_a_browser(site: Site) -> None:
    with site.python("examples/browser_proxy.py", str(site.config), "127.0.0.1:0") as first_line:
        address = first_line.split(" on ")[1].partition(";")[0]
        page = site.client.run("curl", "-sS", "--fail", "--proxy", f"socks5h://{address}", "http://web.internal/")
        assert page.startswith("hello")
    site.assert_nothing_leaked()


@pytest.mark.network
def test_example_reaches_a_database(site: Site) -> None:
    """A real PostgreSQL is reached by name, by address, and by psql through a forward, as the example advises."""
    pytest.importorskip("pg8000", reason="the driver that the example uses")
    login = (postgresql.USER, postgresql.PASSWORD)
    with postgresql.database(site.peer, "10.77.0.2", "fd77::2"):
        for host in ("db.internal", "10.77.0.2", "fd77::2"):
            message = site.run_python("examples/reach_postgresql.py", str(site.config), host, *login)
            assert message.startswith("[['PostgreSQL "), message
        forward = ("-m", "wyrmhole.cli.main", "forward", str(site.config), "127.0.0.1:0", "db.internal:5432")
        with site.python(*forward) as first_line:
            host, _, port = first_line.split()[-1].rpartition(":")
            words = ("psql", "-h", host, "-p", port, "-U", login[0], "-d", "postgres", "-Atc", "SELECT 6 * 7")
            assert site.client.run(*words, environ={"PGPASSWORD": login[1]}) == "42\n"
    site.assert_nothing_leaked()
