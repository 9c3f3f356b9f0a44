"""Hosts that lack something: writable sysctls, IPv6, nf_tables, a firewall, name servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.quick.lab import (
    EVERYTHING,
    Quick,
    conf,
    program,
    traces,
    way,
    with_dns,
)
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.lab import Lab

pytestmark = pytest.mark.network


def read_only_sysctls(quick: Quick) -> subprocess.CompletedProcess[str]:
    script = (
        f"mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {WYRMHOLE} up {quick.file}"
    )
    words = ["unshare", "-m", "ip", "netns", "exec", quick.host.name, "sh", "-c", script]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("valid_mark", "rp_filter", "status", "message"),
    [
        ("1", "1", 0, ""),
        ("0", "2", 0, "it matters only with a strict rp_filter, which is off here"),
        ("0", "1", 1, "the strict rp_filter of eth0 would drop the answers"),
    ],
)
def test_read_only_sysctls_matter_only_if_they_are_needed(
    lab: Lab, tmp_path: Path, valid_mark: str, rp_filter: str, status: int, message: str
) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv4.conf.all.src_valid_mark", valid_mark)
    client.sysctl("net.ipv4.conf.all.rp_filter", "0")
    client.sysctl("net.ipv4.conf.eth0.rp_filter", rp_filter)
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"))
    before = traces(client)
    result = read_only_sysctls(quick)
    assert result.returncode == status and message in result.stderr, result.stderr
    assert ("--sysctl net.ipv4.conf.all.src_valid_mark=1" in result.stderr) == bool(message)
    if not status:
        quick(WYRMHOLE, "down")
    assert quick.is_gone() and traces(client) == before


def test_disabled_ipv6_is_left_out(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    client.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"))
    result = quick.try_run("up")
    assert result.returncode == 0 and "left out the address fd77::1/64" in result.stderr, result.stderr
    assert "left out the routes to ::/0" in result.stderr
    assert way(client) == quick.name
    quick(WYRMHOLE, "down")
    assert traces(client) == before
    alone = Quick(client, tmp_path, conf("::/0", address="fd77::1/64"))
    result = alone.try_run("up")
    assert result.returncode == 1 and "no Address of the file can be used: IPv6 is switched off" in result.stderr
    assert alone.is_gone() and traces(client) == before


def test_up_refuses_to_let_ipv6_bypass_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING))
    result = quick.try_run("up")
    assert result.returncode == 1 and "packets to ::/0 would leave outside the tunnel" in result.stderr
    assert quick.is_gone() and traces(client) == before


def test_mtu_below_the_ipv6_minimum_leaves_ipv6_out(lab: Lab, tmp_path: Path) -> None:
    """The kernel silently removes IPv6 and its addresses from such an interface."""
    client, _, _ = lab.routed()
    more, mtu = "MTU = 1200\n", 1200
    quick = Quick(client, tmp_path, conf(EVERYTHING, more, address="10.77.0.1/24, fd77::1/64"))
    before = traces(client)
    result = quick.try_run("up")
    assert result.returncode == 1 and f"MTU {mtu} is below 1280, the minimum of IPv6, but other" in result.stderr
    assert "packets to ::/0 would leave outside the tunnel; set MTU to 1280 or more" in result.stderr
    assert quick.is_gone() and traces(client) == before
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    result = quick.try_run("up")
    assert result.returncode == 0 and "left out the address fd77::1/64" in result.stderr, result.stderr
    assert way(client) == quick.name
    quick(WYRMHOLE, "down")


WITHOUT_IPV6 = """
import ctypes, os, struct, sys
# seccomp(2): socket(AF_INET6, ...) fails with EAFNOSUPPORT, as where the kernel was started with ipv6.disable=1.
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, {socket}), (0x20, 0, 0, 16), (0x15, 0, 1, 10)]
steps += [(6, 0, 0, 0x50061), (6, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *step) for step in steps)
text = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


SOCKET = {"x86_64": 41, "aarch64": 198}


@pytest.mark.skipif(os.uname().machine not in SOCKET, reason="the filter knows two architectures")
def test_ipv4_works_on_a_kernel_without_ipv6(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    before = traces(client)
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"))
    wrapper = tmp_path / "without_ipv6.py"
    wrapper.write_text(WITHOUT_IPV6.format(socket=SOCKET[os.uname().machine]))
    result = client.try_run(sys.executable, str(wrapper), WYRMHOLE, "up", str(quick.file))
    assert result.returncode == 0 and "this kernel has no IPv6: left out the routes to ::/0" in result.stderr
    assert way(client) == quick.name
    client.run(sys.executable, str(wrapper), WYRMHOLE, "down", str(quick.file))
    assert quick.is_gone() and traces(client) == before


NO_NF_TABLES = "echo 'Unable to initialize Netlink socket: Protocol not supported' >&2; exit 1"


def test_iptables_is_used_if_the_kernel_lacks_nf_tables(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    program(tmp_path, "nft", NO_NF_TABLES)
    for name in ("iptables", "ip6tables"):
        program(tmp_path, f"{name}-restore", f"cat >> {tmp_path}/{name}")
        program(tmp_path, f"{name}-save", f"sed 's/^-I/-A/' {tmp_path}/{name} 2>/dev/null; exit 0")
    programs = tmp_path / "bin"
    quick = Quick(client, tmp_path, conf(EVERYTHING, address="10.77.0.1/24, fd77::1/64"), programs)
    quick(WYRMHOLE, "up")
    v4, v6 = ((tmp_path / name).read_text() for name in ("iptables", "ip6tables"))
    assert "-d 10.77.0.1 -m addrtype ! --src-type LOCAL -j DROP" in v4 and "-d fd77::1 " in v6
    quick(WYRMHOLE, "down")
    for name, rules in (("iptables", v4), ("ip6tables", v6)):
        assert (tmp_path / name).read_text() == rules + rules.replace("-I", "-D")


def test_default_route_without_a_firewall_is_refused(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    program(tmp_path, "nft", NO_NF_TABLES)
    programs = program(tmp_path, "iptables-restore", "echo 'no such table: raw' >&2; exit 3")
    quick = Quick(client, tmp_path, conf("0.0.0.0/0"), programs)
    before = traces(client)
    result = quick.try_run("up")
    assert result.returncode == 1 and quick.is_gone() and traces(client) == before
    for message in ("Protocol not supported", "iptables-restore refused", "no such table: raw", "Table = off"):
        assert message in result.stderr
    quick.file.write_text(conf("10.0.0.0/8"))
    quick(WYRMHOLE, "up")
    quick(WYRMHOLE, "down")
    assert quick.is_gone(), "a split tunnel needs no firewall"


def test_down_succeeds_even_if_resolvconf_fails(lab: Lab, tmp_path: Path) -> None:
    client, _ = lab.neighbours()
    quick = Quick(client, tmp_path, conf("10.0.0.0/8", "DNS = 10.77.0.9\n"), with_dns(tmp_path))
    quick(WYRMHOLE, "up")
    program(tmp_path, "resolvconf", "echo 'not mine' >&2; exit 1")
    result = quick.try_run("down")
    assert result.returncode == 0 and "the record of name servers may be left" in result.stderr
    assert quick.is_gone()
