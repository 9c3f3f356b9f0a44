"""HostStack: an interface of this host, for programs with the privilege to make one (CAP_NET_ADMIN).

Each socket is bound to the interface (SO_BINDTODEVICE), so that it sends through the tunnel or not at all. Other
programs see the interface and its addresses but keep their routes, because the tunnel's routes are in a separate table
that only bound sockets use (`host_routes.py`). Other programs need routes of their own to use the tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from wyrmhole.errors import TunnelError
from wyrmhole.library.common.fork_guard import ForkGuard
from wyrmhole.library.stacks.host_routes import HostRoutes, remove_orphans
from wyrmhole.library.stacks.stack import Socket, SocketVerbs, StackAbilities
from wyrmhole.net import link_setup, netlink
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.net.linux_tun import LinuxTun, TunError
from wyrmhole.net.sock_diag import NETLINK_SOCK_DIAG, SockDiag

IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
NAME_TEMPLATE = "wyr%d"


class HostStack(SocketVerbs):
    """See `stack.Stack`."""

    name = "tun"

    def __init__(self, tun: LinuxTun) -> None:
        self._forks = ForkGuard()
        self._lock = threading.RLock()
        self._tun = tun
        self._device = os.fsencode(tun.name)
        self._closed = False
        self._addresses: list[Interface] = []
        self._setup = netlink.Client()
        self._diag = SockDiag(
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        )
        self._index = self._setup.link(tun.name, None).interface
        self._routes = HostRoutes(self._setup, tun.name, self._index)

    @classmethod
    def open(cls, name: str | None = None) -> HostStack:
        """Make the interface. Raises TunnelError: EPERM without the privilege, EBUSY if the name is in use."""
        remove_orphans()
        try:
            tun = LinuxTun.create(name or NAME_TEMPLATE)
        except TunError as error:
            raise TunnelError(error.errno, str(error.strerror)) from error
        try:
            stack = cls(tun)
        except BaseException:
            tun.close()
            raise
        with contextlib.suppress(OSError):
            link_setup.refuse_link_local(stack._setup, stack._index)
        return stack

    def __repr__(self) -> str:
        return f"<HostStack {self._device.decode()}, {'closed' if self._closed else 'open'}>"

    @property
    def port(self) -> LinuxTun:
        return self._tun

    @property
    def traits(self) -> StackAbilities:
        return StackAbilities(unconnected_sockets=True, backlog=True, raw=True, congestion="")

    def configure(self, addresses: Sequence[Interface], routes: Sequence[Network], mtu: int) -> None:
        """See `Stack.configure`. Raises TunnelError."""
        with self._lock:
            self._check()
            try:
                link_setup.set_up(self._setup, self._index, mtu=mtu)
                self._set_addresses(addresses)
                self._routes.configure(routes, addresses)
            except OSError as error:
                reason = self._why_no_ipv6(addresses) or error.strerror
                raise TunnelError(error.errno, f"cannot set up {self._tun.name}: {reason}") from error

    def _why_no_ipv6(self, addresses: Sequence[Interface]) -> str | None:
        """Explain why the interface cannot have IPv6 addresses, if any are wanted."""
        setting = f"net.ipv6.conf.{self._tun.name}.disable_ipv6"
        if all(address.version == 4 for address in addresses):
            return None
        if not IPV6_SETTINGS.exists():
            return "this kernel has no IPv6: remove the IPv6 addresses from Address"
        with contextlib.suppress(OSError):
            if (IPV6_SETTINGS / self._tun.name / "disable_ipv6").read_text().strip() == "1":
                return (
                    f"IPv6 is switched off on this host ({setting} is 1): switch it on (sysctl "
                    "net.ipv6.conf.default.disable_ipv6=0), or remove the IPv6 addresses from Address"
                )
        return None

    def _set_addresses(self, wanted: Sequence[Interface]) -> None:
        for address in [old for old in self._addresses if old not in wanted]:
            with contextlib.suppress(OSError):  # the kernel may have removed it with a change of the MTU
                link_setup.remove_address(self._setup, self._index, _as_host(address))
            self._addresses.remove(address)
        # Add all of them again: below the minimum MTU of IPv6, the kernel removes IPv6 addresses for good.
        for address in wanted:
            # As a host address, because its network must not become reachable for other programs.
            link_setup.add_address(self._setup, self._index, _as_host(address))
        self._addresses = list(wanted)

    def socket(self, family: int, kind: int, protocol: int = 0, *, patience: float | None = None) -> Socket:
        """See `Stack.socket`."""
        self._check()
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _check(self) -> None:
        if self._closed:
            raise TunnelError(errno.EBADF, "the tunnel is closed: open a new one")
        self._forks.check()

    def abort_all(self) -> int:
        """See `Stack.abort_all`."""
        with self._lock:
            return 0 if self._closed else self._abort_all()

    def _abort_all(self) -> int:
        with contextlib.suppress(OSError):
            return self._diag.destroy_all(self._index)
        return -1

    def close(self) -> None:
        """See `Stack.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._forks.is_forked:
                self._abort_all()
                self._routes.close()
                with contextlib.suppress(OSError):
                    link_setup.delete(self._setup, self._index)
            self._setup.close()
            self._diag.close()
            self._tun.close()


def _as_host(address: Interface) -> Interface:
    return ipaddress.ip_interface(f"{address.ip}/{address.max_prefixlen}")
