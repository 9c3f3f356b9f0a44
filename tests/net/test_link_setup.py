"""An address is usable when the call that adds it returns."""

from __future__ import annotations

import ipaddress
from typing import Any, cast

import pytest

from tests.support.namespaces import Namespace
from wyrmhole.net import link_setup, netlink
from wyrmhole.net.linux_tun import LinuxTun

V6 = ipaddress.ip_interface("fd66::1/64")


class Kernel:
    """A kernel that accepts packets to an address only after `patience` queries."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.added = 0

    def change(self, *_: Any) -> None:
        self.added += 1

    def is_local(self, address: str) -> bool:
        assert address == "fd66::1"
        self.patience -= 1
        return self.patience < 0


def test_adding_an_ipv6_address_waits_until_it_is_usable() -> None:
    kernel = Kernel(2)
    link_setup.add_address(cast(netlink.Client, kernel), 7, V6)
    assert (kernel.added, kernel.patience) == (1, -1)


def test_the_wait_for_an_address_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_setup, "POLL_SECONDS", 0)
    kernel = Kernel(10_000)
    link_setup.add_address(cast(netlink.Client, kernel), 7, V6)
    assert kernel.patience == 10_000 - link_setup.POLLS


@pytest.mark.network
def test_packets_to_a_new_address_are_accepted_at_once() -> None:
    host = Namespace()
    try:
        with host.entered():
            tun, client = LinuxTun.create("wyrset%d"), netlink.Client()
            index = client.link(tun.name, None).interface
            link_setup.set_up(client, index, mtu=1420)
            link_setup.add_route(client, index, ipaddress.ip_network("::/0"))
            for number in range(1, 21):
                for text in (f"10.66.0.{number}/24", f"fd66::{number}/64"):
                    address = ipaddress.ip_interface(text)
                    link_setup.add_address(client, index, address)
                    assert client.is_local(str(address.ip)), address
            assert not client.is_local("fd66::99")
            assert not client.is_local("192.0.2.1"), "there is no route to it"
            client.close()
            tun.close()
    finally:
        host.delete()
