"""The parts of `wyrmhole run` that need no namespaces."""

from __future__ import annotations

import array
import errno
import ipaddress
import os
import socket
import time
from pathlib import Path

import pytest

from wyrmhole.cli.confined import network, parent
from wyrmhole.cli.confined.names import only_files_and_dns
from wyrmhole.cli.confined.network import uncovered
from wyrmhole.errors import DeviceError
from wyrmhole.net import link_setup
from wyrmhole.net.link_setup import Interface, Network


def networks(*texts: str) -> list[Network]:
    return [ipaddress.ip_network(text) for text in texts]


def interfaces(*texts: str) -> list[Interface]:
    return [ipaddress.ip_interface(text) for text in texts]


def test_connected_routes_are_left_to_the_kernel() -> None:
    """The kernel's routes contain the source address, ours would not."""
    routes = networks("10.1.0.0/24", "10.1.0.128/25", "10.1.0.0/16", "10.2.0.0/24", "0.0.0.0/0", "fd00::/64", "::/0")
    found = list(uncovered(routes, interfaces("10.1.0.1/24", "fd00::1/48")))
    assert found == networks("10.1.0.0/16", "10.2.0.0/24", "0.0.0.0/0", "::/0")


def test_address_with_prefix_length_0_still_gets_a_default_route() -> None:
    assert list(uncovered(networks("0.0.0.0/0", "10.0.0.0/8"), interfaces("10.0.0.1/0"))) == networks("0.0.0.0/0")


def test_many_routes_take_linear_time() -> None:
    routes: list[Network] = [ipaddress.IPv4Network((i << 8, 24)) for i in range(1 << 16, (1 << 16) + 100_000)]
    started = time.process_time()
    assert len(list(uncovered(routes, interfaces("10.0.0.1/24", "10.9.0.1/32")))) > 99_000
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "this host has IPv6 switched off"),
        (errno.EAFNOSUPPORT, "this host has IPv6 switched off"),
        (errno.EOPNOTSUPP, "this host has IPv6 switched off"),
    ],
)
def test_family_that_the_host_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def add(_client: object, _index: int, address: Interface) -> None:
        if address.version == 6:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(link_setup, "add_address", add)
    warnings: list[str] = []
    addresses = interfaces("10.0.0.1/24", "fd00::1/64", "fd00::2/64")
    client: object = None
    missing = network._add_addresses(client, 1, addresses, 1420, warnings.append)  # type: ignore[arg-type]
    assert missing == {6: reason}
    assert warnings == [f"{reason}: fd00::1/64, fd00::2/64 and the IPv6 routes are left out"]
    with pytest.raises(DeviceError, match=f"add an address: {reason}"):
        network._add_addresses(client, 1, addresses[1:], 1420, warnings.append)  # type: ignore[arg-type]


def test_other_failure_of_an_address_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(link_setup, "add_address", refuse)
    client: object = None
    with pytest.raises(DeviceError, match=r"add the address 10\.0\.0\.1/24: Invalid argument"):
        network._add_addresses(client, 1, interfaces("10.0.0.1/24"), 1420, print)  # type: ignore[arg-type]


def test_closed_ping_range_is_a_warning_for_users_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "PING_GROUPS", str(tmp_path / "missing" / "range"))
    warnings: list[str] = []
    network.open_ping(False, warnings.append)
    assert not warnings
    network.open_ping(True, warnings.append)
    assert "cannot write" in warnings[0] and "No such file" in warnings[0]


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        ("hosts: files resolve [!UNAVAIL=return] dns\n", "hosts: files dns\n"),
        (
            "passwd: files sss\n hosts :\tmdns4 dns # x\nnetworks: files\n",
            "passwd: files sss\n hosts : files dns\nnetworks: files\n",
        ),
        ("# hosts: resolve\nhosts: nis", "# hosts: resolve\nhosts: files dns"),
        ("ghosts: x\n", "ghosts: x\n"),
        ("", ""),
    ],
)
def test_hosts_are_resolved_by_files_and_dns_only(former: str, expected: str) -> None:
    assert only_files_and_dns(former) == expected


# The channel to the child


def test_progress_may_arrive_together_with_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file:
        theirs.sendall(b"...")
        theirs.sendall(b".")
        theirs.sendmsg([b"ready\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
        os.close(parent._receive_tun(ours))


def test_silent_child_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"..")
        ours.settimeout(0.01)
        with pytest.raises(DeviceError, match="not ready after"):
            parent._receive_tun(ours)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"", r"cannot isolate the program: its process ended$"),
        (b"..", r"cannot isolate the program: its process ended$"),
        (b".making a mount namespace: it was refused\n", r"program: making a mount namespace: it was refused$"),
        (b"cannot add the route 10.0.0.0/8: Invalid argument\n", r"Invalid argument$"),
    ],
)
def test_report_of_the_child_is_the_error(message: bytes, sentence: str) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(message)
        with pytest.raises(DeviceError, match=sentence):
            parent._receive_tun(ours)
