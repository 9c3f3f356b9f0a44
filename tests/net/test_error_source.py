"""The source addresses from which the kernel accepts an ICMP error on a TUN.

They are why our errors come from the address that could not be reached, not from one of the host's addresses.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

import pytest

from tests.support.namespaces import Namespace
from wyrmhole.net import link_setup, netlink
from wyrmhole.net.linux_tun import LinuxTun
from wyrmhole.wire import ip
from wyrmhole.wire.checksum import checksum

pytestmark = pytest.mark.network

_IP_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_OWN = {4: "10.9.0.1", 6: "fd09::1"}
_OTHER = {4: "10.9.0.2", 6: "fd09::2"}


def read_udp(tun: LinuxTun) -> bytes:
    """Return the next UDP packet; skip other packets of the host."""
    buffer = bytearray(1 << 16)
    while length := tun.read_into(buffer):
        if ip.udp_ports(packet := bytes(buffer[10:length])):
            return packet
    raise AssertionError("no packet arrived")


def from_own_address(error: bytes, version: int) -> bytes:
    """Return the ICMP error with our own address as its source, like the kernel module sends it."""
    if version == 4:
        header = error[:10] + bytes(2) + socket.inet_aton(_OWN[4]) + error[16:20]
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + error[20:]
    header = error[:8] + socket.inet_pton(socket.AF_INET6, _OWN[6]) + error[24:40]
    body = error[40:42] + bytes(2) + error[44:]
    pseudo = header[8:40] + len(body).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    return header + body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]


@pytest.mark.parametrize(
    ("version", "is_own", "arrives"), [(4, False, True), (4, True, False), (6, False, True), (6, True, True)]
)
def test_an_ipv4_error_from_the_host_s_address_is_a_martian(version: int, is_own: bool, arrives: bool) -> None:
    space = Namespace()
    try:
        with space.entered():
            tun = LinuxTun.create("wyrerr0")
            client = netlink.Client()
            index = client.link("wyrerr0", None).interface
            link_setup.set_up(client, index)
            for address in ("10.9.0.1/24", "fd09::1/64"):
                link_setup.add_address(client, index, ipaddress.ip_interface(address))
            client.close()
            program = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        with program:
            program.setsockopt(*_IP_RECVERR[version], 1)
            program.connect((_OTHER[version], 7))
            program.send(b"x")
            error = ip.unreachable(read_udp(tun), no_route=False)
            assert error is not None
            assert tun.write([bytes(10), from_own_address(error, version) if is_own else error])
            # A TUN delivers within the write, so there is nothing to wait for.
            assert program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == (errno.EHOSTUNREACH if arrives else 0)
        tun.close()
    finally:
        space.delete()
