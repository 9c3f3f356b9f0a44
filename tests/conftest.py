"""Shared by all tests: the conditions under which network tests run, are skipped, or fail in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

TOOLS = ("ip", "ss", "ping", "wg", "wg-quick", "iperf3", "nft", "conntrack", "pgrep", "setpriv", "tc", "unshare")
PEERS = ("wireguard", "boringtun-cli", "gotatun")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wyrmhole" / "bin"

os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin:{CACHE}"


def reason_against_network_tests() -> str | None:
    if "WYRMHOLE_TESTS_AS_USER" in os.environ:
        # Set by tests/library/test_as_user.py, which runs only tests that need no privileges.
        return None
    if os.geteuid() != 0:
        return "network tests need root, because they create network namespaces"
    missing = [tool for tool in (*TOOLS, *PEERS) if shutil.which(tool) is None]
    if missing:
        return f"missing {', '.join(missing)}: run `make test-deps`"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: run `modprobe tun`"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("network") is None:
        return
    reason = reason_against_network_tests()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must run network tests: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """With CI=true, a network test that skips itself at run time fails too."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("network") is not None:
        report.outcome = "failed"
        report.longrepr = f"CI must run network tests: {report.longrepr}"
