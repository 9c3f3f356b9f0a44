"""An unused interface sends nothing: it has neither a link-local address nor the MULTICAST flag."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.support.namespaces import Namespace
from wyrmhole.net import netlink, quiet_link, tun_ioctl
from wyrmhole.net.linux_tun import LinuxTun

NAME = "wyrquiet0"


@pytest.fixture
def host() -> Iterator[Namespace]:
    space = Namespace()
    yield space
    space.delete()


def flags(host: Namespace, name: str = NAME) -> set[str]:
    return set(json.loads(host.ip("-j", "link", "show", name))[0]["flags"])


def link_local(host: Namespace, name: str = NAME) -> list[str]:
    shown = json.loads(host.ip("-j", "-6", "addr", "show", "dev", name, "scope", "link"))
    return [address["local"] for each in shown for address in each.get("addr_info", ()) if address]


def drain(tun: LinuxTun) -> list[bytes]:
    """Return the packets that the host sent through the interface."""
    buffer, found = bytearray(1 << 16), []
    while length := tun.read_into(buffer):
        found.append(bytes(buffer[10:length]))
    return found


def open_tun(name: str) -> int:
    """Open the TUN like another process that passes its descriptor to us."""
    fileno = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    tun_ioctl.attach(fileno, name, tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR)
    return fileno


@pytest.mark.network
@pytest.mark.parametrize("handed_over", [False, True])
def test_an_interface_with_all_routes_is_silent_when_it_comes_up(host: Namespace, handed_over: bool) -> None:
    with host.entered():
        tun = LinuxTun.from_fd(open_tun(NAME)) if handed_over else LinuxTun.create(NAME)
    host.ip("link", "set", NAME, "up")
    host.ip("-6", "route", "add", "::/0", "dev", NAME)
    assert "UP" in flags(host)
    assert "MULTICAST" not in flags(host)
    assert link_local(host) == []
    assert drain(tun) == []
    tun.close()


@pytest.mark.network
def test_the_kernel_s_link_local_address_is_removed(host: Namespace) -> None:
    with host.entered():
        fileno = open_tun(NAME)
        host.ip("link", "set", NAME, "up")
        host.ip("-6", "addr", "add", "fd99::1/64", "dev", NAME)
        host.ip("-6", "addr", "add", "fe80::77/64", "dev", NAME, "nodad")
        made = [address for address in link_local(host) if address != "fe80::77"]
        tun = LinuxTun.from_fd(fileno)
    assert made, "the kernel assigned no address, so the test proves nothing"
    assert link_local(host) == ["fe80::77"], "an address that somebody configured is kept"
    assert "fd99::1" in host.ip("-6", "addr", "show", "dev", NAME)
    assert "MULTICAST" not in flags(host)
    tun.close()


@pytest.mark.network
def test_an_interface_stays_silent_after_its_ipv6_is_restarted(host: Namespace) -> None:
    """Below an MTU of 1280, an interface loses IPv6; above, it gets IPv6 again, with the host's defaults."""
    with host.entered():
        tun = LinuxTun.create(NAME)
        host.ip("link", "set", NAME, "mtu", "1200")
        tun.poll_events()
        host.ip("link", "set", NAME, "mtu", "1420")
        tun.poll_events()
    host.ip("link", "set", NAME, "up")
    assert link_local(host) == []
    tun.close()


@pytest.mark.network
def test_an_interface_of_the_same_name_elsewhere_is_unchanged(host: Namespace) -> None:
    """Here, another interface may have the same index and name."""
    other = Namespace()
    try:
        with host.entered():
            tun = LinuxTun.create(NAME)
            host.ip("link", "set", NAME, "netns", other.name)
            index = json.loads(other.ip("-j", "link", "show", NAME))[0]["ifindex"]
            host.ip("link", "add", NAME, "index", str(index), "type", "veth", "peer", "name", "wyrquiet1")
            tun.poll_events()
            other.ip("link", "set", NAME, "mtu", "1400")
            tun.poll_events()
        for name in (NAME, "wyrquiet1"):
            host.ip("link", "set", name, "up")
        assert link_local(host) != [], "the other interface was changed"
        assert "MULTICAST" in flags(host)
        tun.close()
    finally:
        other.delete()


class Refusing:
    """A kernel that refuses every request, like without permission or without IPv6."""

    def __init__(self) -> None:
        self.requests = 0

    def change(self, *_: Any) -> None:
        self.requests += 1
        raise netlink.Refused(errno.EAFNOSUPPORT, "refused")

    dump = change


def test_a_refusal_does_not_prevent_the_start() -> None:
    kernel = Refusing()
    quiet_link.silence(cast(netlink.Client, kernel), netlink.Link(7, 0x1001, 1420))
    assert kernel.requests == 3
