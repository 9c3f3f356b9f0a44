"""Rules and routes are read back unchanged, and ip(8) shows them as expected."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.namespaces import Namespace, namespaces
from wyrmhole.net import link_setup, netlink, policy_rules
from wyrmhole.net.link_setup import Route
from wyrmhole.net.policy_rules import FAMILIES, Rule

pytestmark = pytest.mark.network


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespaces(1) as (made,):
        made.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
        yield made


@pytest.fixture
def client(host: Namespace) -> Iterator[netlink.Client]:
    with host.entered():
        made = netlink.Client()
    with closing(made):
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_a_rule_is_read_back_and_removed(host: Namespace, client: netlink.Client, version: int) -> None:
    family = FAMILIES[version]
    source = ipaddress.ip_address("10.9.9.9" if version == 4 else "fd99::9").packed
    mark = Rule(family, 51820, mark=51820, inverted=True, priority=100, protocol=0)
    main = Rule(family, 254, suppressed=0, priority=99, protocol=0)
    own = Rule(family, 52820, source=source, priority=98)
    for rule in (mark, main, own):
        policy_rules.add(client, rule)
    printed = host.ip(f"-{version}", "rule")
    assert "not from all fwmark 0xca6c lookup 51820" in printed
    assert "from all lookup main suppress_prefixlength 0" in printed
    assert {mark, main, own} <= set(policy_rules.rules(client, family))
    with pytest.raises(netlink.Refused) as error:
        policy_rules.add(client, mark)
    assert error.value.errno == errno.EEXIST
    for rule in (mark, main, own):
        policy_rules.remove(client, rule)
    assert not {mark, main, own} & set(policy_rules.rules(client, family))


@pytest.mark.parametrize("version", [4, 6])
def test_a_rule_of_another_program_can_be_removed(host: Namespace, client: netlink.Client, version: int) -> None:
    host.ip(f"-{version}", "rule", "add", "not", "fwmark", "7", "table", "7", "priority", "70")
    (found,) = [rule for rule in policy_rules.rules(client, FAMILIES[version]) if rule.priority == 70]
    assert (found.mark, found.table, found.inverted, found.suppressed) == (7, 7, True, None)
    policy_rules.remove(client, found)
    assert "70:" not in host.ip(f"-{version}", "rule")


@pytest.mark.parametrize(
    ("version", "prefix"), [(4, "20.0.0.0/8"), (6, "fd20::/16"), (4, "0.0.0.0/0"), (6, "::/0"), (4, "20.0.0.1/32")]
)
def test_a_route_is_reserved_read_back_and_removed(
    host: Namespace, client: netlink.Client, version: int, prefix: str
) -> None:
    network = ipaddress.ip_network(prefix)
    index = client.link("near", None).interface
    link_setup.set_up(client, index)
    link_setup.set_up(client, client.link("far", None).interface)
    link_setup.reserve_route(client, index, network, 51820, link_setup.PROTOCOL_BOOT)
    with pytest.raises(netlink.Refused) as error:
        link_setup.reserve_route(client, index, network, 51820, link_setup.PROTOCOL_BOOT)
    assert error.value.errno == errno.EEXIST
    wanted = Route(version, 51820, index, network.prefixlen, int(network.network_address))
    assert wanted in link_setup.routes(client, FAMILIES[version])
    link_setup.remove_route(client, index, network, 51820, link_setup.PROTOCOL_BOOT)
    assert wanted not in link_setup.routes(client, FAMILIES[version])


def test_a_route_has_its_own_mtu(host: Namespace, client: netlink.Client) -> None:
    host.ip("link", "set", "near", "up")
    host.ip("route", "add", "20.0.0.0/8", "dev", "near", "mtu", "1300")
    route = link_setup.parse_route(client.route("20.1.2.3"))
    assert (route.mtu, route.device) == (1300, client.link("near", None).interface)
    with pytest.raises(netlink.Refused):
        client.route("21.1.2.3")


def test_the_kind_of_an_interface_is_read(client: netlink.Client) -> None:
    near = client.link("near", None)
    assert (near.kind, client.link_at(near.interface)) == ("veth", near)
    assert client.link("lo", None).kind == ""
    with pytest.raises(netlink.Refused) as error:
        client.link_at(9999)
    assert error.value.errno == errno.ENODEV


def test_a_claimed_address_is_read_back_and_claimed_once(client: netlink.Client) -> None:
    index = client.link("near", None).interface
    wanted = [ipaddress.ip_interface(text) for text in ("10.9.1.1/24", "10.9.1.2/24", "fd99::1/64")]
    for address in wanted:
        link_setup.claim_address(client, index, address)
    assert [each.address for each in link_setup.addresses(client) if each.interface == index] == wanted
    with pytest.raises(netlink.Refused) as error:
        link_setup.claim_address(client, index, wanted[0])
    assert error.value.errno == errno.EEXIST


def test_a_cable_joins_two_namespaces(client: netlink.Client) -> None:
    with namespaces(1) as (other,):
        with other.entered():
            there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            elsewhere = netlink.Client()
        with closing(elsewhere):
            link_setup.add_cable(client, "cable", there)
            assert (client.link("cable", None).kind, elsewhere.link("cable", None).kind) == ("veth", "veth")
            with pytest.raises(netlink.Refused) as error:
                link_setup.add_cable(client, "cable", there)
            assert error.value.errno == errno.EEXIST
        os.close(there)
