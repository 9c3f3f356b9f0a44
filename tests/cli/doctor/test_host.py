"""`doctor` on hosts that lack something reports the reason and a remedy."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wyrmhole.cli.doctor import host as diagnosis_host
from wyrmhole.cli.doctor.finding import reason


def without(*families: int) -> Callable[..., socket.socket]:
    real = socket.socket

    def make(family: int = socket.AF_INET, *rest: Any, **named: Any) -> socket.socket:
        if family in families:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *rest, **named)

    return make


@pytest.mark.parametrize(
    ("missing", "level", "found"),
    [
        ((), "good", "IPv4 and IPv6"),
        ((socket.AF_INET6,), "poor", "IPv6 is off (Address family not supported by protocol)"),
        ((socket.AF_INET,), "poor", "IPv4 is off (Address family not supported by protocol)"),
        ((socket.AF_INET, socket.AF_INET6), "bad", "neither IPv4 nor IPv6 sockets"),
    ],
)
def test_missing_family_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: tuple[int, ...], level: str, found: str
) -> None:
    monkeypatch.setattr(diagnosis_host, "PROC_SYS", tmp_path)
    monkeypatch.setattr(socket, "socket", without(*missing))
    (finding,) = diagnosis_host.families()
    assert (finding.level, finding.found, bool(finding.advice)) == (level, found, level != "good")


def test_ipv6_disabled_by_a_setting_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "net/ipv6/conf/all/disable_ipv6"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n")
    monkeypatch.setattr(diagnosis_host, "PROC_SYS", tmp_path)
    (finding,) = diagnosis_host.families()
    assert finding.level == "poor" and f"{switch} is 1" in finding.found


@pytest.mark.parametrize(("text", "warns"), [("1\t0\n", True), ("0\t2147483647\n", False), ("", False)])
def test_closed_ping_range_is_reported_with_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, warns: bool
) -> None:
    path = tmp_path / "net/ipv4/ping_group_range"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setattr(diagnosis_host, "PROC_SYS", tmp_path)
    found = {finding.what: finding for finding in diagnosis_host.settings()}
    assert found["settings"].level == "good"
    assert ("ping" in found) == warns
    assert not warns or "net.ipv4.ping_group_range" in found["ping"].advice


def test_read_only_proc_sys_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(diagnosis_host, "PROC_SYS", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    finding = next(diagnosis_host.settings())
    assert finding.level == "poor" and "read-only" in finding.found and "src_valid_mark" in finding.advice


@pytest.mark.parametrize(
    ("text", "level", "found"),
    [
        (None, "poor", "No such file or directory"),
        ("# none\nsearch example\n", "poor", "has no name servers"),
        ("nameserver 192.0.2.1\n", "good", "has name servers"),
    ],
)
def test_name_servers_of_the_host_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, level: str, found: str
) -> None:
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(diagnosis_host, "RESOLV_CONF", str(path))
    (finding,) = diagnosis_host.name_servers()
    assert finding.level == level and found in finding.found


def test_landlock_is_found_or_the_reason_is_reported() -> None:
    (finding,) = diagnosis_host.landlock()
    assert finding.found.startswith(("version ", "not available: "))


def test_reason_contains_no_errno() -> None:
    assert reason(OSError(1, "Operation not permitted")) == "Operation not permitted"
    assert reason(OSError(13, "Permission denied", "/proc/x")) == "/proc/x: Permission denied"
    assert reason(ValueError("x")) == "x"
    assert reason(KeyError()) == "KeyError"
